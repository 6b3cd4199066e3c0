"""JSON records and lines in files, by index: JSON Lines, plain or packed with gzip or zip, and JSON arrays.

A record is found by its offset, so no file is read through but once, for its index (`data/index.py`). Packed
files cannot be read in the middle; they are unpacked once, into the folder of the index.
"""

import gzip
import json
import re
import shutil
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Int64

from dreamllm.data.index import INDEX_FOLDER, FileIndex, FileScan, find_files, index_files, index_path
from dreamllm.document.atomic import replacing
from dreamllm.document.document import Document
from dreamllm.document.jsonl import FaultError, read_json
from dreamllm.document.messages import shown
from dreamllm.errors import DocumentError

T = TypeVar("T")

JSON_LINES: Final = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zip", ".json.zip")
_PACKED: Final = (".gz", ".zip")
_UNREADABLE: Final = -1
"""Offset of the one record that stands for a file which cannot be unpacked."""
_BLANK: Final = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The bytes of one record, and where they are."""

    data: bytes
    file: Path
    """The file as it was given, packed or not."""
    number: int
    """Of its line from 1, or of the element of an array from 0."""
    where: str
    """File and number, for messages."""

    def json(self) -> Any:
        """The value of the record.

        Raises:
            FaultError: it is not JSON.
        """
        try:
            return read_json(self.data, name="the record")
        except DocumentError as error:
            raise FaultError("bad_json", f"{self.where}: {error}") from error


class Records:
    """The records of one or more files, by index."""

    def __init__(
        self,
        path: Path,
        *,
        suffixes: tuple[str, ...] = (*JSON_LINES, ".json"),
        index_folder: Path | None = None,
        key: str | None = None,
        as_lines: bool = False,
    ) -> None:
        """Index a path.

        `.json` files are arrays, or objects with an array at `key` ("*": the values of the object are the
        records); all others are lines, and so is everything with `as_lines`.
        """
        files = find_files(path, suffixes)
        root = files[0].parent
        folder = root / INDEX_FOLDER if index_folder is None else index_folder
        self._scan = _Scan(folder=folder, root=root, key=key, as_lines=as_lines)
        reader = f"records {key!r} {as_lines}"
        self._index: FileIndex = index_files(files, self._scan, reader=reader, folder=folder)

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First record of each file, then the number of records."""
        return self._index.bounds

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, sorted."""
        return self._index.files

    def __len__(self) -> int:
        return len(self._index)

    def size(self, index: int) -> int:
        """Bytes of a record, without reading it."""
        number, row = self._index.locate(index)
        return int(self._index.row(number, row)[1])

    def __getitem__(self, index: int) -> Record:
        number, row = self._index.locate(index)
        file = self._index.files[number]
        try:
            offset, size, name = map(int, self._index.row(number, row))
            where = f"{file}:{name}"
            if offset == _UNREADABLE:
                raise FaultError(
                    "corrupt_archive",
                    f"{file} cannot be unpacked; expected a whole gzip or zip file; fetch it again",
                )
            with self._scan.plain_file(file).open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        except (OSError, DocumentError, IndexError) as error:
            if isinstance(error, FaultError):
                raise
            raise FaultError("corrupt_archive", f"{file}: record {row} cannot be read: {error}") from error
        if len(data) < size:
            raise FaultError(
                "truncated_archive",
                f"{where} ends after {len(data)} of {size} bytes; expected the file as it was indexed; "
                "restore it, or open the archive again",
            )
        return Record(data=data, file=file, number=name, where=where)


class RecordArchive:
    """Records made into documents by a function, which can be pickled."""

    def __init__(self, records: Records, make: Callable[[Record, int], Document]) -> None:
        """`make` is given a record and its index; a DocumentError it raises becomes a fault of it."""
        self._records = records
        self._make = make

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First document of each file, then the number of documents."""
        return self._records.bounds

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        name = type(self._make).__name__
        return f"RecordArchive({name}, {len(self)} documents, {len(self._records.files)} files)"

    def __getitem__(self, index: int) -> Document:
        record = self._records[index]
        try:
            return self._make(record, index)
        except FaultError:
            raise
        except DocumentError as error:
            raise FaultError("bad_document", f"{record.where}: {error}") from error

    def size(self, index: int) -> int:
        """Bytes of the record."""
        return self._records.size(index)


def required(value: Any, key: str, kind: type[T], *, where: str) -> T:
    """The entry of a JSON object, which must be there and of that type.

    Raises:
        FaultError: it is not.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise FaultError(
            "bad_document",
            f"{where}: {key!r} is {shown(found)} in {shown(value)}; expected a value of type {kind.__name__}"
            "; correct the record, or the options that name its keys",
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """Finds the records of a file."""

    folder: Path
    root: Path
    key: str | None
    as_lines: bool

    def __call__(self, path: Path) -> FileScan:
        if path.name.endswith(_PACKED):
            try:
                _unpack(path, self.plain_file(path))
            except (
                zipfile.BadZipFile,
                gzip.BadGzipFile,
                zlib.error,
                EOFError,
                NotImplementedError,
                RuntimeError,
            ):
                return _table(array("q", [_UNREADABLE, 0, 0]), faults=1)
        if self.as_lines or not path.name.endswith(".json"):
            return _scan_lines(self.plain_file(path))
        return scan_json(path, self.key)

    def plain_file(self, path: Path) -> Path:
        """Where the bytes of a file can be read in any order."""
        if not path.name.endswith(_PACKED):
            return path
        return index_path(self.folder, path, root=self.root, purpose="unpacked", suffix=".unpacked")


def _unpack(path: Path, target: Path) -> None:
    with replacing(target) as file:
        if path.name.endswith(".gz"):
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, file)
            return
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                with archive.open(name) as packed:
                    shutil.copyfileobj(packed, file)
                file.write(b"\n")  # blank lines are no records


def _table(rows: array, *, faults: int = 0) -> FileScan:
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 3) if rows else np.zeros((0, 3), np.int64)
    return FileScan(groups=(len(table),), rows=table, faults=faults)


def _scan_lines(path: Path) -> FileScan:
    """Offset, size and number of every line that is not blank."""
    rows = array("q")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.extend((offset, len(line), number))
            offset += len(line)
    return _table(rows)


def scan_json(path: Path, key: str | None) -> FileScan:
    """Offset, size and number of every element of a JSON array; what cannot be parsed is one last record.

    The text is held in memory, its values one at a time.
    """
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows, faults, place, offset = array("q"), 0, 0, 0
    for number, (start, end, is_whole) in enumerate(_elements(text, key)):
        offset += _num_bytes(text[place:start])
        size = _num_bytes(text[start:end])
        rows.extend((offset, size, number))
        faults += not is_whole
        place, offset = end, offset + size
    return _table(rows, faults=faults)


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _elements(text: str, key: str | None) -> Iterator[tuple[int, int, bool]]:
    """Start and end of every element, and whether it is one; what is not reaches to the end of the text."""
    decoder = json.JSONDecoder()
    place = _skip(text, 0)
    try:
        in_object = key == "*"
        if not in_object and text[place : place + 1] == "{" and key is not None:
            place = _find_key(text, place, key, decoder)
        if text[place : place + 1] != ("{" if in_object else "["):
            yield place, len(text), False
            return
        place = _skip(text, place + 1)
        while text[place : place + 1] not in ("]", "}"):
            if in_object:
                place = _skip(text, decoder.raw_decode(text, place)[1], r"[\s:]*")
            end = decoder.raw_decode(text, place)[1]
            yield place, end, True
            place = _skip(text, end)
    except (ValueError, RecursionError):
        yield place, len(text), False


def _find_key(text: str, place: int, key: str, decoder: json.JSONDecoder) -> int:
    """Where the value of a key of the object at `place` starts; the end of the text if it has no such key."""
    place = _skip(text, place + 1)
    while text[place : place + 1] == '"':
        name, end = decoder.raw_decode(text, place)
        place = _skip(text, end, r"[\s:]*")
        if name == key:
            return place
        place = _skip(text, decoder.raw_decode(text, place)[1])
    return len(text)


def _skip(text: str, place: int, what: str = _BLANK.pattern) -> int:
    found = re.compile(what).match(text, place)
    return place if found is None else found.end()
