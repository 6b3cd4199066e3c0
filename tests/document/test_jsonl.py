"""Documents on disk: what is written is read, and every fault is found, named and counted."""

import json
import os
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tests.document.random_documents import content, documents

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import read_documents, write_documents
from dreamllm.errors import DocumentError, ImageError

RED = PILImage.new("RGB", (3, 2), (255, 0, 0))
GOOD = {"id": "good", "parts": [{"type": "text", "text": "fine"}]}

FAULTS: list[tuple[str, str]] = [
    ("bad_json", '{"id": "a", "parts": ['),
    ("bad_json", '{"id": "a", "parts": [], "metadata": {"x": NaN}}'),
    ("bad_json", "[" * 100_000),
    ("bad_document", "[]"),
    ("bad_document", '{"id": "a"}'),
    ("bad_document", '{"id": 7, "parts": []}'),
    ("bad_document", '{"id": "a", "parts": [], "metadata": []}'),
    ("bad_document", '{"id": "a", "parts": [], "label": 1}'),
    (
        "bad_document",
        '{"parts": [{"type": "text", "text": "", "role": "user"}, {"type": "text", "text": ""}]}',
    ),
    ("bad_part", '{"parts": [{"type": "text"}]}'),
    ("bad_part", '{"parts": ["text"]}'),
    ("bad_part", '{"parts": [{"type": "text", "text": "\\ud800"}]}'),
    ("bad_part", '{"parts": [{"type": "text", "text": "", "role": "robot"}]}'),
    ("bad_part", '{"parts": [{"type": "text", "text": "", "learn": 1}]}'),
    ("bad_part", '{"parts": [{"type": "text", "text": "", "lern": false}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "../a.png"}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "b/../../a.png"}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "/etc/passwd"}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "C:\\\\a.png"}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "..\\\\a.png"}]}'),
    ("path_outside_folder", '{"parts": [{"type": "image", "path": "a\\u0000.png"}]}'),
    ("missing_image", '{"parts": [{"type": "image", "path": "gone.png"}]}'),
    ("wrong_image_count", '{"parts": [{"type": "text", "text": "a"}], "num_images": 1}'),
    ("wrong_image_count", '{"parts": [], "num_images": "0"}'),
]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@settings(max_examples=25, deadline=None)
@given(written=st.lists(documents(), max_size=3))
def test_documents_survive_the_disk_in_any_order_of_access(written: list[Document]) -> None:
    with TemporaryDirectory() as folder:
        path = write_documents(written, Path(folder) / "sub" / "set.jsonl")

        read = read_documents(path, check_images=True)

        assert len(read) == len(written)
        assert not read.faults
        for index in reversed(range(len(written))):
            assert content(read[index]) == content(written[index])
            assert (read[index].id, read[index].metadata) == (written[index].id, written[index].metadata)
        assert [document.id for document in read] == [document.id for document in written]
        assert not list(Path(folder).rglob("*.tmp"))


def test_the_folder_can_be_moved_because_paths_are_relative(tmp_path: Path) -> None:
    write_documents([Document(parts=(Image(source=RED),))], tmp_path / "old" / "set.jsonl")
    os.replace(tmp_path / "old", tmp_path / "new")

    picture = read_documents(tmp_path / "new" / "set.jsonl")[0].images[0]

    assert isinstance(picture.source, Path)
    assert picture.source.parent == tmp_path / "new" / "set_images"
    assert picture.load().getpixel((0, 0)) == (255, 0, 0)


def test_equal_pictures_are_one_file_in_the_folder_asked_for(tmp_path: Path) -> None:
    document = Document(parts=(Image(source=RED), Image(source=RED.copy())))

    write_documents([document], tmp_path / "set.jsonl", tmp_path / "a" / "b")

    assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    line = json.loads((tmp_path / "set.jsonl").read_text())
    assert line["num_images"] == 2
    assert line["parts"][0]["path"].startswith("a/b/")
    with pytest.raises(DocumentError, match="outside the folder"):
        write_documents([document], tmp_path / "sub" / "set.jsonl", tmp_path / "a")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_documents([Document(parts=(Text(text="old"),))], tmp_path / "set.jsonl")
    bad: list[tuple[Document, type[Exception], str]] = [
        (
            Document(parts=(), metadata={"x": object()}),
            DocumentError,
            "document 1 .*not JSON serializable",
        ),
        (Document(parts=(), metadata={"x": float("nan")}), DocumentError, "cannot be written as JSON"),
        (Document(parts=(Text(text="\ud800"),)), DocumentError, "expected Unicode text"),
        (Document(parts=(Image(source=b""),)), ImageError, "picture of 0 bytes"),
    ]

    for document, error, message in bad:
        with pytest.raises(error, match=message):
            write_documents([Document(parts=()), document], path)

    assert [document.text for document in read_documents(path)] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.jsonl"]


@pytest.mark.parametrize(("kind", "line"), FAULTS)
def test_each_fault_is_raised_with_its_line_or_counted_by_its_kind(
    kind: str, line: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "set.jsonl", json.dumps(GOOD), "", line, json.dumps(GOOD | {"id": "last"}))

    with pytest.raises(DocumentError, match=r"set\.jsonl:3: .*expected"):
        read_documents(path)
    read = read_documents(path, on_fault="skip")

    assert dict(read.faults) == {kind: 1}
    assert [document.id for document in read] == ["good", "last"]
    assert read[-1].id == "last"
    assert read.fault_examples[kind][0].startswith(f"{path}:3: ")
    assert len(read.fault_examples[kind][0]) < 600


def test_bytes_that_are_no_text_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"parts": [{"type": "text", "text": "\xff"}]}')

    assert read_documents(path, on_fault="skip").faults["bad_json"] == 1


def test_corrupt_pictures_are_found_on_request_and_otherwise_when_opened(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    line: dict[str, Any] = {"id": "a", "parts": [{"type": "image", "path": "bad.png"}]}
    path = write_lines(tmp_path / "set.jsonl", json.dumps(line))

    assert read_documents(path, on_fault="skip", check_images=True).faults == {"corrupt_image": 1}
    with pytest.raises(DocumentError, match=r"set\.jsonl:1: picture .*bad\.png is not a picture"):
        read_documents(path, check_images=True)
    document = read_documents(path)[0]
    with pytest.raises(ImageError, match=r"bad\.png"):
        document.images[0].load()


def test_examples_are_few_and_the_count_is_exact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "set.jsonl", *["{"] * 5, json.dumps(GOOD))

    read = read_documents(path, on_fault="skip")

    assert read.faults.total() == 5
    assert len(read.fault_examples["bad_json"]) == 3
    assert "left out 5 lines, kept 1" in caplog.text


def test_an_index_out_of_range_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    read = read_documents(write_lines(tmp_path / "set.jsonl", json.dumps(GOOD)))

    for index in (1, -2):
        with pytest.raises(IndexError, match="which has 1"):
            read[index]
    with pytest.raises(DocumentError, match=r"cannot read .*gone\.jsonl"):
        read_documents(tmp_path / "gone.jsonl")
    with pytest.raises(DocumentError, match="on_fault is 'ignore'; expected 'raise' or 'skip'"):
        read_documents(tmp_path / "set.jsonl", on_fault="ignore")  # type: ignore[arg-type]


def test_a_reader_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    read = read_documents(write_lines(tmp_path / "set.jsonl", json.dumps(GOOD)))

    assert pickle.loads(pickle.dumps(read))[0].text == "fine"


def test_a_file_without_a_last_line_break_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(GOOD))

    assert len(read_documents(path)) == 1
