"""MMC4 and ordered records. The MMC4 record has the fields of the data set's public description."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.data.formats.pictures import jpeg, write_jpeg

from dreamllm.data.archive import open_documents
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError


def said(document: Document) -> list[str]:
    """Texts, and names of pictures in angle brackets."""
    return [
        part.text if isinstance(part, Text) else f"<{getattr(part.source, 'name', part.source)}>"
        for part in document
    ]


def picture(name: str, sentence: int, similarity: float) -> dict[str, Any]:
    return {
        "image_name": name,
        "raw_url": f"https://example.org/photos/{name}?w=9",
        "matched_text_index": sentence,
        "matched_sim": similarity,
        "face_detections": None,
    }


RECORD = {
    "text_list": ["One. ", "Two.", "Three.", "Four."],
    "image_info": [picture("c.jpg", 2, 0.3), picture("b.jpg", 1, 0.24), picture("a.jpg", 0, 0.25)],
    "url": "https://example.org/",
    "similarity_matrix": [[0.1] * 4] * 3,
    "could_have_url_duplicate": 0,
}


def write_mmc4(folder: Path, *records: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in "abc":
        write_jpeg(folder / "images" / f"{name}.jpg", ord(name))
    with zipfile.ZipFile(folder / "docs_shard_7_v3.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs_shard_7_v3.jsonl", "\n".join(map(json.dumps, records)))
    return folder / "images"


def test_a_picture_follows_its_sentence_and_dissimilar_ones_are_left_out(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)

    document = open_documents(tmp_path, options={"images": str(images)})[0]

    assert said(document) == ["One.", "<a.jpg>", "Two. Three.", "<c.jpg>", "Four."]
    assert all(part.learn and part.role is None for part in document)
    assert document.id == "docs_shard_7_v3-1"
    assert document.metadata["left_out"] == {"dissimilar": 1, "unusable": 0}


def test_a_picture_may_stand_before_its_sentence(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)
    options = {"images": str(images), "position": "before", "min_similarity": 0.0}

    document = open_documents(tmp_path, options=options)[0]

    assert said(document) == ["<a.jpg>", "One.", "<b.jpg>", "Two.", "<c.jpg>", "Three. Four."]


def test_pictures_that_match_best_are_kept(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)

    document = open_documents(tmp_path, options={"images": str(images), "max_images": 1})[0]

    assert said(document) == ["One. Two. Three.", "<c.jpg>", "Four."]


def test_a_missing_picture_is_a_fault_or_left_out(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)
    (images / "a.jpg").unlink()

    with pytest.raises(FaultError) as fault:
        open_documents(tmp_path, options={"images": str(images)})[0]
    document = open_documents(tmp_path, options={"images": str(images), "missing": "leave_out"})[0]

    assert fault.value.kind == "missing_image"
    assert said(document) == ["One. Two. Three.", "<c.jpg>", "Four."]
    assert document.metadata["left_out"] == {"dissimilar": 1, "unusable": 1}


def test_a_document_with_too_few_pictures_left_is_a_fault(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)
    options = {"images": str(images), "min_similarity": 0.9}

    with pytest.raises(FaultError, match="has 3 pictures, 0 of them") as fault:
        open_documents(tmp_path, options=options)[0]

    assert fault.value.kind == "missing_image"
    assert said(open_documents(tmp_path, options=options | {"min_images": 0})[0]) == [
        "One. Two. Three. Four."
    ]


def test_pictures_may_be_named_for_their_url_and_shard(tmp_path: Path) -> None:
    write_mmc4(tmp_path, RECORD)
    for name in "ac":
        write_jpeg(tmp_path / "docs_shard_7_v3" / f"{name}.jpg")

    archive = open_documents(
        tmp_path,
        options={"images": str(tmp_path), "image_name": "{shard}/{url_name}", "min_similarity": 0.25},
    )

    assert said(archive[0])[1] == "<a.jpg>"
    with pytest.raises(ConfigError, match="image_name, matched_sim"):
        open_documents(tmp_path, options={"images": str(tmp_path), "image_name": "{sha1}"})[0]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"text_list": "One."}, "bad_document"),
        ({"text_list": ["One.", 2]}, "bad_document"),
        ({"image_info": None}, "bad_document"),
        ({"image_info": [picture("a.jpg", 9, 0.3)]}, "bad_document"),
        ({"image_info": [picture("a.jpg", 0, 0.3) | {"matched_sim": None}]}, "bad_document"),
        ({"image_info": [picture("../images/a.jpg", 0, 0.3)]}, "path_outside_folder"),
        ({"image_info": [picture("/etc/passwd", 0, 0.3)]}, "path_outside_folder"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(tmp_path: Path, change: dict[str, Any], kind: str) -> None:
    images = write_mmc4(tmp_path, RECORD | change, RECORD)

    archive = open_documents(tmp_path, options={"images": str(images)})

    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == kind
    assert len(archive[1]) == 5


def write_ordered(folder: Path, record: Any) -> Path:
    for name in "ab":
        write_jpeg(folder / f"{name}.jpg", ord(name))
    (folder / "stories.json").write_text(json.dumps([record]))
    return folder / "stories.json"


def test_texts_and_pictures_of_one_place_belong_together(tmp_path: Path) -> None:
    story = {"id": 45, "texts": ["We went.", None, "We saw."], "images": ["a.jpg", "b.jpg", None]}
    file = write_ordered(tmp_path, story)

    after, before = (
        open_documents(file, options={"position": position})[0] for position in ("after", "before")
    )

    assert said(after) == ["We went.", "<a.jpg>", "<b.jpg>", "We saw."]
    assert said(before) == ["<a.jpg>", "We went.", "<b.jpg>", "We saw."]
    assert after.id == "45"


def test_lists_of_different_length_are_a_fault(tmp_path: Path) -> None:
    file = write_ordered(tmp_path, {"texts": ["We went."], "images": ["a.jpg", "b.jpg"]})

    with pytest.raises(FaultError) as fault:
        open_documents(file)[0]
    assert fault.value.kind == "wrong_image_count"


def test_steps_and_a_title(tmp_path: Path) -> None:
    steps = [{"text": "Cut.", "image_path": "a.jpg"}, {"text": "Serve.", "image_path": ["a.jpg", "b.jpg"]}]
    file = write_ordered(tmp_path, {"title": "Toast", "steps": steps})

    document = open_documents(file, "ordered", {"steps": "steps", "title": "title"})[0]

    assert said(document) == ["Toast", "Cut.", "<a.jpg>", "Serve.", "<a.jpg>", "<b.jpg>"]


def test_items_as_comm_has_them(tmp_path: Path) -> None:
    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    def image(name: str) -> dict[str, str]:
        return {"type": "image", "image_path": name, "url": "https://example.org/x"}

    record = {
        "summary_info": [text("How to."), image("a.jpg")],
        "step_info": [[text("Cut.")], [image("b.jpg")]],
    }
    file = write_ordered(tmp_path, record)
    options = {"items": ["summary_info", "step_info"]}

    document = open_documents(file, "ordered", options)[0]

    assert said(document) == ["How to.", "<a.jpg>", "Cut.", "<b.jpg>"]
    write_ordered(tmp_path, record | {"step_info": [[{"type": "video"}]]})
    with pytest.raises(FaultError) as fault:
        open_documents(file, "ordered", options)[0]
    assert fault.value.kind == "bad_part"


def write_tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_pictures_may_be_in_tar_files(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)
    file = write_tar(images / "docs_shard_7_v3.tar", c=jpeg(3), b=jpeg(2), a=jpeg(1))
    options = {"images": str(images), "image_name": "{shard}.tar/{image_name}"}

    archive = pickle.loads(pickle.dumps(open_documents(tmp_path, options=options)))

    assert [image.source for image in archive[0].images] == [jpeg(1), jpeg(3)]
    write_tar(file, a=jpeg(4), c=jpeg(5))  # its table is made anew
    assert [image.source for image in archive[0].images] == [jpeg(4), jpeg(5)]


@pytest.mark.parametrize(
    ("members", "cut", "kind"),
    [
        ({"a": jpeg(1)}, None, "missing_image"),
        ({"a": b"<html>", "c": jpeg(1)}, None, "corrupt_image"),
        ({"a": jpeg(1), "c": jpeg(1)}, 512 + 100, "truncated_archive"),
        (None, None, "missing_image"),
    ],
)
def test_a_picture_that_a_tar_file_does_not_hold_is_a_fault(
    tmp_path: Path, members: dict[str, bytes] | None, cut: int | None, kind: str
) -> None:
    change = {"image_info": [picture("a.jpg", 0, 0.3), picture("c.jpg", 0, 0.3)]}
    images = write_mmc4(tmp_path, RECORD | change)
    if members is not None:
        file = write_tar(images / "x.tar", **members)
        file.write_bytes(file.read_bytes()[:cut])

    archive = open_documents(tmp_path, options={"images": str(images), "image_name": "x.tar/{image_name}"})

    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == kind


def test_a_tar_file_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    images = write_mmc4(tmp_path, RECORD)
    write_tar(tmp_path / "x.tar", a=jpeg(1), c=jpeg(1))

    archive = open_documents(tmp_path, options={"images": str(images), "image_name": "../x.tar/{image_name}"})

    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == "path_outside_folder"
