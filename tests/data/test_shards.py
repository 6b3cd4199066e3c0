"""Shards: what is written reads back, in any order and anywhere, and what is damaged is named."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tests.document.random_documents import content, documents
from webdataset.tariterators import group_by_keys, tar_file_expander

from dreamllm.data.archive import GroupedArchive, SizedArchive, open_documents
from dreamllm.data.shards import ShardArchive, write_shards
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.images import png_bytes
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, DocumentError, ImageError


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


def pair(number: int) -> Document:
    return Document(
        parts=(Image(source=jpeg(number), learn=False), Text(text=f"caption {number}")), id=f"pair-{number}"
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents(), max_size=5), st.integers(1, 3))
def test_documents_read_back_equal(tmp_path: Path, written: list[Document], per_shard: int) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))

    summary = write_shards(written, folder, documents_per_shard=per_shard)
    archive = ShardArchive(folder)

    assert len(archive) == summary.documents == len(written)
    assert summary.pictures == sum(len(document.images) for document in written)
    assert summary.shards == -(-len(written) // per_shard)
    for index in reversed(range(len(written))):
        assert content(archive[index]) == content(written[index])
        assert (archive[index].id, archive[index].metadata) == (written[index].id, written[index].metadata)


def test_pictures_keep_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(jpeg(1))
    document = Document(
        parts=(Image(source=jpeg(0)), Image(source=file), Image(source=PILImage.new("RGB", (2, 3))))
    )

    write_shards([document], tmp_path / "out")

    sources = [image.source for image in open_documents(tmp_path / "out")[0].images]
    assert sources == [jpeg(0), jpeg(1), png_bytes(PILImage.new("RGB", (2, 3)))]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert names == [
        "000000000.json",
        "000000000.0.jpg",
        "000000000.1.jpg",
        "000000000.2.png",
    ]


def test_the_webdataset_library_reads_the_shards(tmp_path: Path) -> None:
    write_shards(map(pair, range(3)), tmp_path / "out")

    with (tmp_path / "out" / "shard-000000.tar").open("rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": "shard", "stream": file}])))

    assert [sample["0.jpg"] for sample in samples] == [jpeg(number) for number in range(3)]
    assert [json.loads(sample["json"])["id"] for sample in samples] == ["pair-0", "pair-1", "pair-2"]


def test_sizes_are_known_without_reading_a_document(tmp_path: Path) -> None:
    write_shards([pair(0), Document(parts=(Text(text="ab"), Text(text="c")), id="words")], tmp_path)
    (tmp_path / "shard-000000.tar").unlink()

    archive = open_documents(tmp_path)

    assert isinstance(archive, SizedArchive)
    assert [archive.size(index) for index in range(2)] == [len("caption 0") + 1200, 3]


def test_a_shard_ends_where_its_size_is_reached(tmp_path: Path) -> None:
    summary = write_shards(map(pair, range(4)), tmp_path, bytes_per_shard=1)

    archive = open_documents(tmp_path)

    assert summary.shards == 4
    assert isinstance(archive, GroupedArchive)
    assert archive.bounds.tolist() == [0, 1, 2, 3, 4]


def test_opening_reads_the_manifest_alone(tmp_path: Path) -> None:
    write_shards(map(pair, range(3)), tmp_path, documents_per_shard=2)
    for file in tmp_path.iterdir():
        if file.name != "index.json":
            file.unlink()

    archive = ShardArchive(tmp_path)

    assert len(archive) == 3
    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == "corrupt_archive"


def test_an_archive_travels_to_other_processes(tmp_path: Path) -> None:
    write_shards(map(pair, range(3)), tmp_path)
    archive = ShardArchive(tmp_path)
    archive[0]

    sent = pickle.dumps(archive)

    assert len(sent) < 2000  # no table travels with it
    assert content(pickle.loads(sent)[2]) == content(pair(2))


def test_a_failure_on_the_way_leaves_no_archive(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield from map(pair, range(3))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_shards(broken(), tmp_path, documents_per_shard=2)

    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard-000000.npy", "shard-000000.tar"]
    with pytest.raises(ConfigError, match="holds no shards"):
        ShardArchive(tmp_path)


def damaged(folder: Path, at: int, byte: bytes) -> ShardArchive:
    write_shards(map(pair, range(3)), folder)
    with (folder / "shard-000000.tar").open("r+b") as file:
        file.seek(at)
        file.write(byte)
    return ShardArchive(folder)


def test_one_changed_byte_costs_one_document(tmp_path: Path) -> None:
    archive = damaged(tmp_path, at=3 * 512, byte=b"\x00\x01\x02")

    with pytest.raises(FaultError, match="CRC-32") as fault:
        archive[0]
    assert fault.value.kind == "corrupt_archive"
    assert archive[1].id == "pair-1"


def test_a_shard_that_was_cut_off_keeps_what_is_whole(tmp_path: Path) -> None:
    write_shards(map(pair, range(3)), tmp_path)
    shard = tmp_path / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[: -2 * 512 - 10])

    archive = ShardArchive(tmp_path)

    assert archive[1].id == "pair-1"
    with pytest.raises(FaultError, match="ends after") as fault:
        archive[2]
    assert fault.value.kind == "truncated_archive"


def test_a_folder_with_a_manifest_is_not_written_again(tmp_path: Path) -> None:
    write_shards([pair(0)], tmp_path)

    with pytest.raises(ConfigError, match="already"):
        write_shards([pair(1)], tmp_path)


def test_a_manifest_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    write_shards([pair(0)], tmp_path)
    manifest = tmp_path / "index.json"
    manifest.write_text(manifest.read_text().replace('"documents": 1', '"documents": 2', 1))

    with pytest.raises(DocumentError, match="add up"):
        ShardArchive(tmp_path)


def test_what_is_no_picture_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="<html>"):
        write_shards([Document(parts=(Image(source=b"<html>gone</html>"),))], tmp_path)


def test_an_index_outside_the_archive_is_an_error(tmp_path: Path) -> None:
    write_shards([pair(0)], tmp_path)

    for index in (1, -1):
        with pytest.raises(IndexError):
            ShardArchive(tmp_path)[index]
