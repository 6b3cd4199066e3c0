"""What a filter keeps arrives in order; a folder appears whole or not at all."""

import os
from pathlib import Path

import pytest
from tests.data.faulty import SomeFaulty

from dreamllm.data.filters import Filter, FilterRules
from dreamllm.data.measures import MeasureOptions
from dreamllm.data.rewriting import kept_documents, new_folder
from dreamllm.document.document import Document, Text
from dreamllm.errors import DiskError, DocumentError


def test_kept_documents_come_in_order_and_the_others_are_counted() -> None:
    words = ("one", "one two", "one two three")
    entries = [Document(parts=(Text(text=text),)) for text in words]
    filter_ = Filter(FilterRules(min_words=2))

    kept = kept_documents(
        SomeFaulty([*entries, ("bad_json", "x")]), range(4), filter_=filter_, options=MeasureOptions()
    )

    assert [document.text for document in kept] == ["one two", "one two three"]
    assert filter_.dropped == {"min_words": 1, "fault: bad_json": 1}


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "folder"

    with new_folder(path) as aside:
        (aside / "file").write_text("x")
        assert not path.exists()

    assert (path / "file").read_text() == "x"
    assert os.listdir(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_nothing_is_left_not_even_the_folders_above(
    error: type[BaseException], tmp_path: Path
) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "new" / "folder") as aside:
            (aside / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fill()

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"cannot write .*folder: No space left on device"),
        new_folder(tmp_path / "folder"),
    ):
        raise OSError(28, "No space left on device")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="exists"), new_folder(tmp_path):
        pass

    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DocumentError, match="exists"), new_folder(tmp_path / "link"):
        pass


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(DiskError, match="cannot write"), new_folder(tmp_path / "file" / "folder"):
        pass
