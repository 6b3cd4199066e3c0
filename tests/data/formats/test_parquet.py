"""Parquet: OBELICS and tables with pictures; pyarrow writes what is read."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.data.formats.pictures import jpeg, write_jpeg

from dreamllm.data.archive import GroupedArchive, open_documents
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, MissingExtraError


def write(path: Path, rows: list[dict[str, Any]], *, group: int = 100) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def said(document: Document) -> list[Any]:
    return [part.text if isinstance(part, Text) else part.source for part in document]


def obelics(number: int) -> dict[str, Any]:
    return {
        "texts": [f"Text {number}.", None, " ", "End."],
        "images": [None, jpeg(number), None, None],
        "general_metadata": json.dumps({"url": f"https://example.org/{number}"}),
        "metadata": "[null]",
    }


def test_rows_of_obelics_are_documents_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [obelics(number) for number in range(3, 5)], group=2)
    write(tmp_path / "a.parquet", [obelics(number) for number in range(3)], group=2)

    archive = open_documents(tmp_path, options={"metadata": "general_metadata"})

    assert isinstance(archive, GroupedArchive)
    assert archive.bounds.tolist() == [0, 2, 3, 5]
    for index in (4, 0, 2, 3, 1):
        assert said(archive[index]) == [f"Text {index}.", jpeg(index), "End."]
    assert all(part.learn and part.role is None for part in archive[0])
    assert archive[4].id == "b-1"
    assert archive[4].metadata == {"url": "https://example.org/4"}


def test_only_columns_that_are_used_are_read_and_few_row_groups_are_kept(tmp_path: Path) -> None:
    from dreamllm.data.formats.parquet_rows import ParquetRows

    write(tmp_path / "a.parquet", [obelics(number) for number in range(4)], group=1)

    rows = ParquetRows(tmp_path, ("texts",), max_cached_bytes=1)
    assert [list(rows[index]) for index in range(4)] == [["texts"]] * 4
    assert len(rows._cached) == 1
    assert len(pickle.loads(pickle.dumps(rows))._cached) == 0


def test_pictures_may_be_files(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "images" / "a.jpg")
    row = {"texts": [None, "x"], "images": ["https://example.org/b/a.jpg?x=1", None]}
    write(tmp_path / "a.parquet", [row])
    options = {"images": str(tmp_path / "images"), "image_name": "{url_name}"}

    assert said(open_documents(tmp_path, options=options)[0]) == [tmp_path / "images" / "a.jpg", "x"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"texts": ["x"], "images": [b"<html>"]}, "wrong_image_count"),
        ({"texts": ["x", None], "images": [None]}, "wrong_image_count"),
        ({"texts": [None, "x"], "images": [b"<html>", None]}, "corrupt_image"),
        ({"texts": ["x"], "images": [None]}, "missing_image"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    write(tmp_path / "a.parquet", [row, {"texts": [None], "images": [jpeg()]}])

    archive = open_documents(tmp_path, options={"min_images": 1})

    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == kind
    assert said(archive[1]) == [jpeg()]


def test_a_picture_that_cannot_be_used_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"texts": [None, "x"], "images": [b"<html>", None]}])

    document = open_documents(tmp_path, options={"missing": "leave_out"})[0]

    assert said(document) == ["x"]
    assert document.metadata == {"left_out": {"unusable": 1}}


def test_a_file_that_is_cut_off_is_one_fault(tmp_path: Path) -> None:
    whole = write(tmp_path / "b.parquet", [obelics(0)])
    (tmp_path / "a.parquet").write_bytes(whole.read_bytes()[:-20])

    archive = open_documents(tmp_path, "obelics")

    assert len(archive) == 2
    with pytest.raises(FaultError, match=r"a\.parquet") as fault:
        archive[0]
    assert fault.value.kind == "truncated_archive"
    assert len(archive[1].images) == 1


def test_pages_that_are_damaged_are_a_fault(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [obelics(0)])
    archive = open_documents(tmp_path)
    data = bytearray(file.read_bytes())
    data[4:600] = b"\xff" * 596
    file.write_bytes(bytes(data))

    with pytest.raises(FaultError):
        archive[0]


def test_a_column_that_is_not_there_is_an_error_of_the_options(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [obelics(0)])

    with pytest.raises(ConfigError, match="not pictures"):
        open_documents(tmp_path, options={"pictures": "pictures"})


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [obelics(0)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'dreamllm\[data\]'"):
        open_documents(tmp_path)


def test_pairs_take_one_of_their_captions(tmp_path: Path) -> None:
    captions = json.dumps({"short": "A cat.", "long": "A grey cat on a mat."})
    write(tmp_path / "a.parquet", [{"image": jpeg(number), "captions": captions} for number in range(2)])

    drawn = open_documents(tmp_path)
    read = open_documents(tmp_path, options={"direction": "read"})
    both = open_documents(tmp_path, options={"direction": "both"})

    assert [said(drawn[index]) for index in range(2)] == [
        ["A cat.", jpeg(0)],
        ["A grey cat on a mat.", jpeg(1)],
    ]
    assert [part.learn for part in drawn[0]] == [False, True]
    assert said(read[1]) == [jpeg(1), "A grey cat on a mat."]
    assert [part.learn for part in read[0]] == [False, True]
    assert [said(both[index]) for index in range(4)] == [
        said(read[0]),
        said(drawn[0]),
        said(read[1]),
        said(drawn[1]),
    ]


def test_pictures_and_captions_as_datasets_stores_them(tmp_path: Path) -> None:
    rows = [{"picture": {"bytes": jpeg(3), "path": "x.jpg"}, "text": "{not JSON"}]
    write(tmp_path / "a.parquet", rows)

    archive = open_documents(tmp_path, "table", {"image": "picture", "caption": "text"})

    assert said(archive[0]) == ["{not JSON", jpeg(3)]


def test_edits_are_conversations_in_turns(tmp_path: Path) -> None:
    row = {
        "image_list": [jpeg(0), jpeg(1), jpeg(2)],
        "instruction_list": [["Make it red.", "Redden it."], ["Add a hat."]],
    }
    write(tmp_path / "a.parquet", [row, row, row | {"instruction_list": [["Make it red."]]}])

    archive = open_documents(tmp_path, options={"layout": "edit"})

    assert [(part.role, part.learn) for part in archive[0]] == [
        ("user", False),
        ("user", False),
        ("assistant", True),
        ("user", False),
        ("assistant", True),
    ]
    assert said(archive[0]) == [jpeg(0), "Make it red.", jpeg(1), "Add a hat.", jpeg(2)]
    assert said(archive[1])[1] == "Redden it."
    with pytest.raises(FaultError) as fault:
        archive[2]
    assert fault.value.kind == "wrong_image_count"


def test_a_pair_without_a_caption_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"image": jpeg(0), "captions": "{}"}])

    with pytest.raises(FaultError) as fault:
        open_documents(tmp_path)[0]
    assert fault.value.kind == "missing_text"
