"""Parquet with pictures in its rows, columns by choice: pairs with captions, and edits in turns.

    pair    a picture and a caption, which may be a JSON object of captions     -> as in `captions.py`
    edit    pictures and instructions: picture, instruction, picture ..         -> a conversation: the user
            shows the first and instructs, the assistant draws each next one

The defaults are the columns of BAGEL's text-to-image and editing data.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dreamllm.data.formats.captions import Direction
from dreamllm.data.formats.named_pictures import NamedPictures
from dreamllm.data.formats.parquet_rows import ParquetRows
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.document.messages import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """Which columns are a document."""

    layout: Literal["pair", "edit"] = "pair"
    """What a row is."""
    image: str = "image"
    """Column of the picture of a pair: bytes, `{"bytes", "path"}`, or a path."""
    caption: str = "captions"
    """Column of its caption: text, a list of texts, or a JSON object whose values are texts; of several, the
    row's number says which."""
    direction: Direction = "draw"
    """What is learned of a pair; see `CaptionOptions`."""
    pictures: str = "image_list"
    """Column of the pictures of an edit, in their order."""
    instructions: str = "instruction_list"
    """Column of its instructions, one fewer than pictures; each a text or a list of alternatives, of which
    the row's number says which."""
    images: Path | None = None
    """Folder of pictures that are paths; null: that of the parquet files."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


class TableArchive:
    """The rows of parquet files."""

    def __init__(self, path: Path, options: TableOptions = TableOptions()) -> None:
        self._options = options
        is_pair = options.layout == "pair"
        columns = (options.image, options.caption) if is_pair else (options.pictures, options.instructions)
        self._rows = ParquetRows(path, columns, index_folder=options.index_folder)
        self._copies = 2 if is_pair and options.direction == "both" else 1
        folder = path if path.is_dir() else path.parent
        self._pictures = NamedPictures(
            folder=folder if options.images is None else options.images, name="{path}"
        )

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First document of each row group, then the number of documents."""
        return self._rows.bounds * self._copies

    def __len__(self) -> int:
        return len(self._rows) * self._copies

    def __repr__(self) -> str:
        return f"TableArchive({len(self)} documents, {self._rows.num_files} parquet files)"

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in parquet files")
        number = index // self._copies
        row, where = self._rows[number], self._rows.where(number)
        if self._options.layout == "edit":
            parts = self._edit(row, number, where)
        else:
            is_drawn = self._options.direction == "draw" or (self._copies == 2 and index % 2 == 1)
            parts = self._pair(row, number, where=where, is_drawn=is_drawn)
        return Document(parts=tuple(parts), id=self._rows.name(number))

    def _pair(self, row: dict[str, Any], number: int, *, where: str, is_drawn: bool) -> list[Part]:
        source = self._pictures.find_value(row[self._options.image], where=where)
        caption = _one_of(_captions(row[self._options.caption]), number, where=where)
        if is_drawn:
            return [Text(text=caption, learn=False), Image(source=source)]
        return [Image(source=source, learn=False), Text(text=caption)]

    def _edit(self, row: dict[str, Any], number: int, where: str) -> list[Part]:
        pictures, instructions = row[self._options.pictures] or [], row[self._options.instructions] or []
        if len(pictures) < 2 or len(instructions) != len(pictures) - 1:
            raise FaultError(
                "wrong_image_count",
                f"{where} has {len(pictures)} pictures and {len(instructions)} instructions; expected 2 "
                "pictures or more and an instruction between each two; leave the row out",
            )
        sources = [self._pictures.find_value(picture, where=where) for picture in pictures]
        parts: list[Part] = [Image(source=sources[0], role="user", learn=False)]
        for alternatives, source in zip(instructions, sources[1:], strict=True):
            told = _one_of(_captions(alternatives), number, where=where)
            parts += [Text(text=told, role="user", learn=False), Image(source=source, role="assistant")]
        return parts


def _captions(value: Any) -> list[str]:
    """The texts in a value: itself, the items of a list, or the values of a JSON object."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                return [value.strip()]  # a caption may start with a brace
            return [text for text in value.values() if isinstance(text, str) and text.strip()]
        return [value.strip()] if value.strip() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [text.strip() for text in value or [] if isinstance(text, str) and text.strip()]


def _one_of(texts: list[str], number: int, *, where: str) -> str:
    if not texts:
        raise FaultError(
            "missing_text", f"{where} has a text {shown(texts)}; expected one that is not empty; leave it out"
        )
    return texts[number % len(texts)].strip()
