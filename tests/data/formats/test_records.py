"""Records in JSON files, by offset, whole and damaged; our own JSON lines; text."""

import gzip
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.formats.pictures import write_jpeg
from tests.document.random_documents import JSON_VALUES, content, documents

from dreamllm.data.archive import DocumentArchive, SizedArchive, open_documents
from dreamllm.data.formats.records import Records
from dreamllm.document.jsonl import FaultError, read_documents, write_documents
from dreamllm.errors import ConfigError


def kinds(archive: DocumentArchive | Records) -> list[str]:
    """`ok`, or the kind of the fault, of every index."""
    found: list[str] = []
    for index in range(len(archive)):
        try:
            item = archive[index]
            if not hasattr(item, "parts"):
                item.json()
            found.append("ok")
        except FaultError as fault:
            found.append(fault.kind)
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON_VALUES, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_elements_of_an_array_read_back_equal(
    tmp_path: Path, values: list[Any], ascii_only: bool, indent: int | None
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    for name, whole in (
        ("array", values),
        ("keyed", {"info": {"questions": [1]}, "questions": values, "x": 2}),
        ("by_id", {str(number): value for number, value in enumerate(values)}),
    ):
        text = json.dumps(whole, ensure_ascii=ascii_only, indent=indent)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")

    for name, key in (("array", None), ("keyed", "questions"), ("by_id", "*")):
        records = Records(folder / f"{name}.json", key=key)
        assert [records[index].json() for index in range(len(records))] == values


def test_lines_know_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": "ü"}\n\n  \n{"a": 2}'.encode())

    records = Records(tmp_path / "a.jsonl")

    assert [records[index].json() for index in range(2)] == [{"a": "ü"}, {"a": 2}]
    assert [records[index].where for index in range(2)] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/a.jsonl:4",
    ]


def test_the_size_of_a_record_is_that_of_its_bytes(tmp_path: Path) -> None:
    lines = ['{"id": "a", "parts": []}', '{"id": "b", "parts": [], "metadata": {}}']
    (tmp_path / "lines.jsonl").write_text("\n".join(lines) + "\n")

    archive = open_documents(tmp_path / "lines.jsonl", "documents")

    assert isinstance(archive, SizedArchive)
    assert [archive.size(index) for index in range(2)] == [len(line) + 1 for line in lines]  # with its end


def test_packed_lines_are_unpacked_once(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(b'{"a": 1}\n{"a": 2}\n')
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", b'{"a": 0}')

    records = Records(tmp_path)
    again = pickle.loads(pickle.dumps(records))

    assert [again[index].json()["a"] for index in range(3)] == [0, 1, 2]
    assert records.bounds.tolist() == [0, 1, 3]
    [unpacked] = (tmp_path / ".dreamllm").glob("b.jsonl.gz-*.unpacked")
    assert unpacked.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_a_packed_file_that_is_cut_off_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    (tmp_path / "b.jsonl.zip").write_bytes(b"PK\x03\x04 and nothing else")
    (tmp_path / "c.jsonl").write_bytes(b"{}")

    assert kinds(Records(tmp_path)) == ["corrupt_archive", "corrupt_archive", "ok"]


def test_a_line_that_is_not_json_is_a_fault_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n{"a": NaN}\n\xff\n{"a": 3}\n')

    assert kinds(Records(tmp_path)) == ["ok", "bad_json", "bad_json", "bad_json", "ok"]


def test_an_array_that_is_cut_off_keeps_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, {"a": 2}, {"a"')

    assert kinds(Records(tmp_path)) == ["ok", "ok", "bad_json"]


def test_a_file_without_the_list_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"questions": {"no": "list"}}')

    with pytest.raises(FaultError):
        Records(tmp_path, key="answers")[0].json()


def test_a_file_that_shrank_after_it_was_indexed_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    records = Records(file)
    file.write_bytes(b'{"a": 1}\n{"a"')

    with pytest.raises(FaultError) as fault:
        records[1]
    assert fault.value.kind == "truncated_archive"


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents(), min_size=1, max_size=4))
def test_our_own_lines_read_as_the_checking_reader_reads_them(tmp_path: Path, written: list[Any]) -> None:
    file = tmp_path / str(len(list(tmp_path.iterdir()))) / "a.jsonl"
    write_documents(written, file)

    archive, checked = open_documents(file), read_documents(file)

    assert len(archive) == len(checked) == len(written)
    for index in range(len(written)):
        assert content(archive[index]) == content(checked[index])


def test_pictures_of_our_own_lines_are_looked_at(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "data" / "a.jpg")
    (tmp_path / "data" / "b.jpg").write_bytes(b"<html>")
    write_jpeg(tmp_path / "c.jpg")
    lines = [
        {"parts": [{"type": "image", "path": path}]} | extra
        for path, extra in [
            ("a.jpg", {}),
            ("b.jpg", {}),
            ("missing.jpg", {}),
            ("../c.jpg", {}),
            ("a.jpg", {"num_images": 2}),
        ]
    ]
    (tmp_path / "data" / "a.jsonl").write_text(
        "\n".join(map(json.dumps, [*lines, {"parts": 3}, {"parts": [5]}]))
    )

    assert kinds(open_documents(tmp_path / "data" / "a.jsonl")) == [
        "ok",
        "corrupt_image",
        "missing_image",
        "path_outside_folder",
        "wrong_image_count",
        "bad_document",
        "bad_part",
    ]


def test_text_is_a_document_a_file_or_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    (tmp_path / "b.txt").write_bytes("drei ü".encode())
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")

    files = open_documents(tmp_path)
    lines = open_documents(tmp_path, options={"unit": "line"})

    assert [files[0].text, files[1].text] == ["one\ntwo", "drei ü"]
    assert kinds(files) == ["ok", "ok", "missing_text", "bad_document"]
    assert [(lines[index].id, lines[index].text) for index in range(3)] == [
        ("a-1", "one"),
        ("a-2", "two"),
        ("b-1", "drei ü"),
    ]


def test_a_path_that_holds_nothing_of_a_format_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")

    for path in (tmp_path, tmp_path / "none", tmp_path / "*.jsonl"):
        with pytest.raises(ConfigError, match="holds no files"):
            open_documents(path)


def test_formats_and_options_that_do_not_exist_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"what": 1}')

    with pytest.raises(ConfigError, match=r"cannot be told: its first record has keys \['what'\]"):
        open_documents(tmp_path)
    with pytest.raises(ConfigError, match="format 'mmc5' is unknown; expected auto or one of captions"):
        open_documents(tmp_path, "mmc5")
    with pytest.raises(ConfigError, match="direction"):
        open_documents(tmp_path, "captions", {"directoin": "read"})


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ({"parts": []}, "ReadDocument"),
        ({"text_list": [], "image_info": []}, "ReadMmc4"),
        ({"id": 1, "conversations": []}, "ReadConversation"),
        ({"messages": []}, "ReadConversation"),
        ({"texts": [], "images": []}, "ReadOrdered"),
    ],
)
def test_json_is_told_by_its_first_keys(tmp_path: Path, first: dict[str, Any], name: str) -> None:
    options = {"images": str(tmp_path)} if name == "ReadMmc4" else {}
    (tmp_path / "a.jsonl").write_text(json.dumps(first))

    assert name in repr(open_documents(tmp_path, options=options))


def test_a_first_record_too_long_to_look_at_wants_a_name(tmp_path: Path) -> None:
    first = {"conversations": [{"from": "gpt", "value": "x" * 5_000_000}]}
    (tmp_path / "a.json").write_text(json.dumps([first]))

    with pytest.raises(ConfigError, match="no record can be read in its first 4194304 bytes"):
        open_documents(tmp_path / "a.json")
    assert kinds(open_documents(tmp_path / "a.json", "conversations")) == ["ok"]
