"""The folder that shows the world."""

from pathlib import Path

import pytest
from PIL import Image as PILImage

from dreamllm.cli import main
from dreamllm.document.jsonl import read_documents
from dreamllm.world.documents import ALL_DOCUMENT_KINDS
from dreamllm.world.sample import KIND_NOTES, describe_world, write_sample
from dreamllm.world.sheet import RIGHT, WRONG, SheetRow, draw_sheet


def test_a_sample_holds_a_document_of_every_kind(tmp_path: Path) -> None:
    paths = write_sample(tmp_path / "world", num=len(ALL_DOCUMENT_KINDS))

    assert [path.name for path in paths] == ["index.html", "pictures.png", "documents.jsonl", "README.txt"]
    documents = read_documents(paths[2])
    assert [document.metadata["kind"] for document in documents] == list(ALL_DOCUMENT_KINDS)
    page = paths[0].read_text(encoding="utf-8")
    assert page.count("<article") == len(ALL_DOCUMENT_KINDS)
    with PILImage.open(paths[1]) as sheet:
        assert sheet.size[0] > 800


def test_the_same_seed_gives_the_same_folder(tmp_path: Path) -> None:
    first, again, other = (
        [path.read_bytes() for path in write_sample(tmp_path / name, num=3, seed=seed)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert first == again
    assert first[2] != other[2]


def test_the_description_names_kinds_chances_held_out_pairs_and_the_judge() -> None:
    text = describe_world()

    assert all(f"  {kind}: {KIND_NOTES[kind]}" in text for kind in ALL_DOCUMENT_KINDS)
    assert "relation: yes, no; 5" in text  # about half
    assert "purple circle" in text
    assert "reads 100.0 % of 500 true pictures" in text


def test_the_verb_writes_the_folder_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["world", "sample", str(tmp_path / "out"), "--num", "2", "--split", "held_out"]) == 0

    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out.splitlines()
    assert len(read_documents(tmp_path / "out" / "documents.jsonl")) == 2


def test_a_sample_of_nothing_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "sample", str(tmp_path), "--num", "0"]) == 2
    assert "num is 0; a sample needs at least 1 document; raise it" in capsys.readouterr().err


def test_a_sheet_frames_pictures_by_their_verdicts() -> None:
    blue = PILImage.new("RGB", (8, 8), (0, 0, 255))

    sheet = draw_sheet([SheetRow("plain", [blue, blue]), SheetRow("judged", [blue, blue], [True, False])])

    colors = [color for _, color in sheet.getcolors(maxcolors=100_000)]
    assert RIGHT in colors
    assert WRONG in colors
    without = draw_sheet([SheetRow("plain", [blue, blue])])
    assert RIGHT not in [color for _, color in without.getcolors(maxcolors=100_000)]
