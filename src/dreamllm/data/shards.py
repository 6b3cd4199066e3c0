"""Our own shards: tar files in the manner of WebDataset, with an index that makes every document one read.

    index.json            the manifest, written last: every shard with its counts and size
    shard-000000.tar      KEY.json (the JSON of document/jsonl.py), KEY.0.jpg, KEY.1.png ..; one after another
    shard-000000.npy      a row of int64 a document: first byte, number of bytes, CRC-32 of them, letters,
                          pictures

Pictures keep the bytes they came with; only those that were open Pillow pictures are encoded, as PNG. Opening
costs the manifest. The tar files alone can be read with the `webdataset` library, and by `tar`.
"""

import json
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from dreamllm.data.index import TableFiles, write_table
from dreamllm.data.picture_files import checked_picture, picture_bytes
from dreamllm.data.tar_members import members_of
from dreamllm.document.atomic import replacing, write_bytes
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError, document_json, json_bytes, read_document, read_json
from dreamllm.errors import ConfigError, DocumentError

MANIFEST: Final = "index.json"
_FORMAT: Final = "dreamllm-shards"
_VERSION: Final = 2
_BLOCK: Final = tarfile.BLOCKSIZE
_LETTERS_A_PICTURE: Final = 1200
"""What takes as many positions as a picture that is read and drawn: about 300 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """What `write_shards` wrote."""

    documents: int
    pictures: int
    shards: int
    bytes: int
    """Size of all tar files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Shards are read in one way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A shard, as the manifest has it."""

    file: str
    documents: int
    pictures: int
    bytes: int


class ShardArchive:
    """Reads a folder that `write_shards` wrote."""

    def __init__(self, path: Path, options: ShardOptions = ShardOptions()) -> None:
        """Open a folder, or its `index.json`.

        Raises:
            ConfigError: there is no manifest.
            DocumentError: the manifest is damaged or of another version.
        """
        self.folder = path.parent if path.name == MANIFEST else path
        self._shards = _read_manifest(self.folder / MANIFEST)
        sizes = [shard.documents for shard in self._shards]
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, dtype=np.int64))])
        self._tables = TableFiles()

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First document of each shard, then the number of documents."""
        return self._bounds

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __repr__(self) -> str:
        return f"ShardArchive({str(self.folder)!r}, {len(self)} documents, {len(self._shards)} shards)"

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {self.folder}, which has {len(self)}")
        shard, number = self._locate(index)
        where = f"{shard}: document {number}"
        members = members_of(self._read(shard, number, where), where=where)
        json_name = next(iter(members), "")
        if not json_name.endswith(".json"):
            raise FaultError(
                "corrupt_archive",
                f"{where} starts with member {json_name!r}; expected KEY.json; write the shards again",
            )
        try:
            value = read_json(members[json_name], name=json_name)
        except DocumentError as error:
            raise FaultError("bad_json", f"{where}: {error}") from error

        def find(name: str) -> bytes:
            if name not in members:
                raise FaultError(
                    "missing_image",
                    f"picture {name!r} is not among {sorted(members)}; expected a member of that name; "
                    "write the shards again",
                )
            return checked_picture(members[name], where=name)

        return read_document(value, where=where, find_picture=find)

    def size(self, index: int) -> int:
        """Letters of the document, and its pictures as so many.

        Raises:
            DocumentError: the table of its shard cannot be read.
        """
        shard, number = self._locate(index)
        _, _, _, letters, pictures = map(int, self._tables(shard.with_suffix(".npy"))[number])
        return letters + _LETTERS_A_PICTURE * pictures

    def _locate(self, index: int) -> tuple[Path, int]:
        """The shard of a document, and its number there."""
        shard = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return self.folder / self._shards[shard].file, index - int(self._bounds[shard])

    def _read(self, shard: Path, number: int, where: str) -> bytes:
        try:
            offset, size, checksum = map(int, self._tables(shard.with_suffix(".npy"))[number][:3])
            with shard.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except (OSError, DocumentError, IndexError, ValueError) as error:
            raise FaultError(
                "corrupt_archive",
                f"{where} cannot be read: {error}; expected the files that {MANIFEST} names; "
                "restore the shard or leave it out",
            ) from error
        if len(data) < size:
            raise FaultError(
                "truncated_archive",
                f"{where} ends after {len(data)} of {size} bytes; expected a whole file; copy it again",
            )
        if zlib.crc32(data) != checksum:
            raise FaultError(
                "corrupt_archive",
                f"{where} has other bytes than were written; expected CRC-32 {checksum:08x}, "
                f"found {zlib.crc32(data):08x}; copy the shard again",
            )
        return data


def write_shards(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    documents_per_shard: int = 1000,
    bytes_per_shard: int = 2**30,
) -> ShardSummary:
    """Write documents in their order; a shard ends with the document that reaches either size.

    A shard appears whole or not at all, and the manifest last: a folder without one is no archive. Documents
    are taken one at a time, and one at a time is held in memory.

    Raises:
        ConfigError: the sizes cannot be meant, or the folder holds shards already.
        DocumentError: a document cannot be written as JSON.
        DiskError: a file cannot be written.
        ImageError: a picture cannot be read, or is none.
    """
    folder = Path(folder)
    if documents_per_shard < 1 or bytes_per_shard < 1:
        raise ConfigError(
            f"documents_per_shard={documents_per_shard}, bytes_per_shard={bytes_per_shard} cannot be meant; "
            "expected at least 1 each; correct them"
        )
    if (folder / MANIFEST).exists():
        raise ConfigError(
            f"{folder} holds {MANIFEST} already; expected a folder without one; choose another, or remove it"
        )
    left = iter(documents)
    shards: list[_Entry] = []
    first = 0
    document = next(left, None)
    while document is not None:
        name = f"shard-{len(shards):06d}.tar"
        rows: list[tuple[int, int, int, int, int]] = []
        pictures = 0
        with replacing(folder / name) as file:
            while document is not None:
                data, num_pictures = _document_members(document, first + len(rows))
                letters = sum(len(part.text) for part in document if isinstance(part, Text))
                rows.append((file.tell(), len(data), zlib.crc32(data), letters, num_pictures))
                file.write(data)
                pictures += num_pictures
                document = next(left, None)
                if len(rows) == documents_per_shard or file.tell() >= bytes_per_shard:
                    break
            file.write(bytes(2 * _BLOCK))  # the end of a tar file
            size = file.tell()
        write_table((folder / name).with_suffix(".npy"), np.asarray(rows, dtype=np.int64))
        shards.append(_Entry(file=name, documents=len(rows), pictures=pictures, bytes=size))
        first += len(rows)
    _write_manifest(folder / MANIFEST, shards)
    return ShardSummary(
        documents=first,
        pictures=sum(shard.pictures for shard in shards),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def _document_members(document: Document, number: int) -> tuple[bytes, int]:
    """The members of a document as they stand in a tar file, and the number of its pictures."""
    key = f"{number:09d}"
    pictures: dict[str, bytes] = {}

    def write_picture(image: Image) -> str:
        suffix, data = picture_bytes(image)
        name = f"{key}.{len(pictures)}.{suffix}"
        pictures[name] = data
        return name

    text = document_json(document, name=f"document {number} ({document.id!r})", write_picture=write_picture)
    blocks: list[bytes] = []
    for name, data in ({f"{key}.json": text} | pictures).items():
        member = tarfile.TarInfo(name)  # no owner and no time: equal documents make equal shards
        member.size = len(data)
        blocks += (member.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % _BLOCK))
    return b"".join(blocks), len(pictures)


def _write_manifest(path: Path, shards: list[_Entry]) -> None:
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "documents": sum(shard.documents for shard in shards),
        "pictures": sum(shard.pictures for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    write_bytes(path, json_bytes(manifest, name=MANIFEST, indent=1) + b"\n")


def _read_manifest(path: Path) -> list[_Entry]:
    try:
        value: Any = json.loads(path.read_bytes())
        found = (value["format"], value["version"])
        shards = [_Entry(**shard) for shard in value["shards"]]
        declared = value["documents"]
    except OSError as error:
        raise ConfigError(
            f"{path.parent} holds no shards: {error.strerror or error}: {path}; expected the {MANIFEST} that "
            "`dreamllm data shard` writes last; correct the path, or write the shards again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(
            f"{path} cannot be read: {type(error).__name__}: {error}; expected the manifest of shards; "
            "write the shards again"
        ) from error
    if found != (_FORMAT, _VERSION) or sum(shard.documents for shard in shards) != declared:
        raise DocumentError(
            f"{path} is {found} of {declared} documents; expected {(_FORMAT, _VERSION)} and shards that add "
            "up to them; write the shards again"
        )
    return shards
