"""Documents in the JSON of `document/jsonl.py`, one a line; and text alone, a document a line or a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from dreamllm.data.formats.records import JSON_LINES, Record, RecordArchive, Records
from dreamllm.data.index import find_files
from dreamllm.data.picture_files import find_picture
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import FaultError, read_document

_TEXT = (".txt", ".md", ".text")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlOptions:
    """How documents one a line are read."""

    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What is one document of text files."""

    unit: Literal["file", "line"] = "file"
    """A document a file, or a document a line that is not blank."""
    index_folder: Path | None = None
    """Where the index of lines is kept; null: `.dreamllm` beside the data."""


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A record in our own JSON; paths of pictures are relative to its file."""

    def __call__(self, record: Record, index: int) -> Document:
        """The document."""
        folder = record.file.parent
        return read_document(
            record.json(),
            where=record.where,
            find_picture=lambda name: find_picture(folder, name, where=f"picture {name!r}"),
        )


@dataclass(frozen=True, slots=True)
class ReadLine:
    """A line of text."""

    def __call__(self, record: Record, index: int) -> Document:
        """A plain document of one text, whose id names file and line."""
        text = read_text(record.data, where=record.where).strip()
        return Document(parts=(Text(text=text),), id=f"{record.file.stem}-{record.number}")


class TextFiles:
    """A plain document of one text a file; nothing is kept but the names."""

    def __init__(self, path: Path) -> None:
        self._files = find_files(path, _TEXT)

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """All files are one group: none is nearer than another."""
        return np.asarray([0, len(self._files)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} text files")
        file = self._files[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise FaultError("bad_document", f"{file} cannot be read: {error}; restore it") from error
        text = read_text(data, where=str(file)).strip()
        if not text:
            raise FaultError("missing_text", f"{file} is empty; expected text; remove the file")
        return Document(parts=(Text(text=text),), id=file.stem)


def read_text(data: bytes, *, where: str) -> str:
    """UTF-8 text.

    Raises:
        FaultError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FaultError(
            "bad_document", f"{where} is not UTF-8: {error}; expected UTF-8 text; convert the file"
        ) from error


def open_jsonl(path: Path, options: JsonlOptions) -> RecordArchive:
    """Documents one a line, without a check of every line: `document.jsonl.read_documents` does that."""
    records = Records(path, suffixes=JSON_LINES, index_folder=options.index_folder, as_lines=True)
    return RecordArchive(records, ReadDocument())


def open_text(path: Path, options: TextOptions) -> RecordArchive | TextFiles:
    """Text files."""
    if options.unit == "file":
        return TextFiles(path)
    records = Records(path, suffixes=_TEXT, index_folder=options.index_folder, as_lines=True)
    return RecordArchive(records, ReadLine())
