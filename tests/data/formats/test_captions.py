"""Tar files of pictures and captions, whole and damaged; expected contents are those the tests wrote."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tests.data.formats.pictures import jpeg

from dreamllm.data.archive import SizedArchive, open_documents
from dreamllm.data.formats.captions import CaptionArchive, CaptionOptions, scan_tar
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import DiskError


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT
) -> list[int]:
    """Write members; where each header starts."""
    starts: list[int] = []
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            starts.append(tar.offset)
            tar.addfile(info, io.BytesIO(data))
    return starts


def pair(number: int, **extra: Any) -> list[tuple[str, bytes]]:
    key = f"{number:05d}"
    return [
        (f"{key}.jpg", jpeg(number)),
        (f"{key}.json", json.dumps({"caption": f"long caption {number}", "key": key, **extra}).encode()),
        (f"{key}.txt", f"caption {number}\n".encode()),
    ]


def pairs(*numbers: int) -> list[tuple[str, bytes]]:
    return [member for number in numbers for member in pair(number)]


def fault_of(archive: CaptionArchive, index: int) -> str:
    with pytest.raises(FaultError) as fault:
        archive[index]
    return fault.value.kind


def ids(archive: CaptionArchive) -> list[str]:
    """Ids of the documents, or the kinds of their faults."""
    found: list[str] = []
    for index in range(len(archive)):
        try:
            found.append(archive[index].id)
        except FaultError as fault:
            found.append(fault.kind)
    return found


def parts_of(document: Document) -> list[tuple[object, bool]]:
    return [(part.text if isinstance(part, Text) else part.source, part.learn) for part in document]


def test_a_pair_is_read_or_drawn(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(0, 1))

    read = open_documents(tmp_path)
    drawn = open_documents(tmp_path, options={"direction": "draw"})
    both = open_documents(tmp_path, options={"direction": "both"})

    assert parts_of(read[1]) == [(jpeg(1), False), ("caption 1", True)]
    assert parts_of(drawn[1]) == [("caption 1", False), (jpeg(1), True)]
    assert read[1].metadata["key"] == "00001"
    assert len(both) == 4
    assert [parts_of(both[index]) for index in (2, 3)] == [parts_of(read[1]), parts_of(drawn[1])]
    assert isinstance(both, SizedArchive)
    assert [both.size(index) for index in range(4)] == [1, 0, 1, 0]


def test_the_caption_may_be_a_key_of_the_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(0))

    archive = open_documents(tmp_path, options={"caption": "caption"})

    assert archive[0].text == "long caption 0"
    with pytest.raises(FaultError, match="'recaption'") as fault:
        open_documents(tmp_path, options={"caption": "recaption"})[0]
    assert fault.value.kind == "missing_text"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_documents_go_over_several_files_and_any_kind_of_tar(tmp_path: Path, format: int) -> None:
    long = "x" * 90 + "/" + "y" * 60  # longer than a plain header holds
    members = [(f"{long}.jpg", jpeg(7)), (f"{long}.txt", b"long name")]
    write_tar(tmp_path / "00000.tar", [*pairs(0, 1), *members], format=format)
    write_tar(tmp_path / "00001.tar", pairs(2), format=format)

    archive = CaptionArchive(tmp_path / "*.tar")

    assert ids(archive) == ["00000", "00001", long, "00002"]
    assert archive.bounds.tolist() == [0, 3, 4]
    assert archive[2].images[0].source == jpeg(7)


def test_the_index_is_kept_and_follows_the_files(tmp_path: Path) -> None:
    file = tmp_path / "00000.tar"
    write_tar(file, pairs(0))
    assert len(CaptionArchive(tmp_path)) == 1
    tables = list((tmp_path / ".dreamllm").glob("*.npy"))
    written = tables[0].stat().st_mtime_ns

    again = CaptionArchive(tmp_path)
    assert (len(again), tables[0].stat().st_mtime_ns) == (1, written)

    write_tar(file, pairs(0, 1))
    write_tar(tmp_path / "00001.tar", pairs(2))
    assert ids(CaptionArchive(tmp_path)) == ["00000", "00001", "00002"]


def test_an_index_can_be_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "00000.tar", pairs(0))

    archive = open_documents(tmp_path / "data", options={"index_folder": str(tmp_path / "index")})

    assert archive[0].id == "00000"
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["00000.tar"]


def test_an_index_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(0))
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(DiskError, match="index_folder"):
        CaptionArchive(tmp_path, CaptionOptions(index_folder=tmp_path / "file" / "index"))


def test_an_archive_travels_to_other_processes(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(0, 1))
    archive = CaptionArchive(tmp_path)
    archive[0]

    assert ids(pickle.loads(pickle.dumps(archive))) == ["00000", "00001"]


def test_a_damaged_header_costs_its_pair_alone(tmp_path: Path) -> None:
    file = tmp_path / "00000.tar"
    starts = write_tar(file, pairs(0, 1, 2), format=tarfile.USTAR_FORMAT)
    with file.open("r+b") as stream:
        stream.seek(starts[4])  # 00001.json
        stream.write(b"\xff" * 200)

    archive = CaptionArchive(tmp_path)

    assert ids(archive) == ["00000", "missing_text", "corrupt_archive", "00002"]
    # tarfile takes the damage for the end of the file
    with tarfile.open(file) as tar:
        assert tar.getnames() == ["00000.jpg", "00000.json", "00000.txt", "00001.jpg"]


def test_a_cut_off_file_keeps_what_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "00000.tar"
    starts = write_tar(file, pairs(0, 1), format=tarfile.USTAR_FORMAT)

    file.write_bytes(file.read_bytes()[: starts[3] + 512 + 100])  # in the picture of the second pair
    assert ids(CaptionArchive(tmp_path)) == ["00000", "truncated_archive"]
    assert scan_tar(file).faults == 1  # known before the pair is read

    file.write_bytes(file.read_bytes()[: starts[3] + 100])  # in a header
    assert ids(CaptionArchive(tmp_path)) == ["00000", "truncated_archive"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 14_000),
    st.binary(min_size=1, max_size=600),
    st.booleans(),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]),
)
def test_whatever_is_damaged_there_are_documents_and_faults(
    tmp_path: Path, at: int, damage: bytes, before: bool, format: int
) -> None:
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.tar"
    write_tar(file, pairs(0, 1, 2), format=format)
    archive = None if before else CaptionArchive(file)

    data = bytearray(file.read_bytes())
    data[at : at + len(damage)] = damage
    file.write_bytes(bytes(data))

    for index in range(len(archive or CaptionArchive(file))):
        with suppress(FaultError):
            (archive or CaptionArchive(file))[index]


def test_what_is_no_tar_file_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"<html>not found</html>" * 50)
    write_tar(tmp_path / "00001.tar", pairs(1))

    assert ids(CaptionArchive(tmp_path)) == ["corrupt_archive", "00001"]


def test_a_key_that_comes_twice_is_a_fault(tmp_path: Path) -> None:
    twice_in_a_row = [("00001.jpg", jpeg()), ("00001.jpg", jpeg()), ("00001.txt", b"x")]
    write_tar(tmp_path / "00000.tar", [*pairs(0), *twice_in_a_row, *pairs(2), *pairs(0)])

    assert ids(CaptionArchive(tmp_path)) == ["00000", "duplicate_key", "00002", "duplicate_key"]


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([("a.txt", b"words")], "missing_image"),
        ([("a.jpg", b"<html>gone</html>"), ("a.txt", b"words")], "corrupt_image"),
        ([("a.jpg", b""), ("a.txt", b"words")], "corrupt_image"),
        ([("a.jpg", jpeg()), ("a.txt", b"  \n")], "missing_text"),
        ([("a.jpg", jpeg()), ("a.txt", b"\xff\xfe")], "bad_document"),
        ([("a.jpg", jpeg()), ("a.txt", b"words"), ("a.json", b"{")], "bad_json"),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(
    tmp_path: Path, members: list[tuple[str, bytes]], kind: str
) -> None:
    write_tar(tmp_path / "00000.tar", members)

    assert fault_of(CaptionArchive(tmp_path), 0) == kind


def test_hidden_files_and_folders_are_no_pairs(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in [("folder/._a.jpg", b"x"), ("folder/a.JPG", jpeg()), ("folder/a.txt", b"words")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    assert ids(CaptionArchive(tmp_path)) == ["folder/a"]


def test_a_picture_is_opened_only_when_it_is_needed(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [("a.jpg", jpeg()[:60]), ("a.txt", b"words")])

    image = CaptionArchive(tmp_path)[0].images[0]

    assert isinstance(image, Image)
    with pytest.raises(Exception, match="corrupt or truncated"):
        image.load()
    assert PILImage.open(io.BytesIO(jpeg())).size == (8, 8)
