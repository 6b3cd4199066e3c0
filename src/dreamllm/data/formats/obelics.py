"""OBELICS (arXiv:2306.16527): parquet rows with parallel lists, `texts` and `images`, one of the two null at
every place. Pictures are bytes in the row, or files found by the path or URL that stands there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dreamllm.data.formats.interleaved import Missing
from dreamllm.data.formats.named_pictures import NamedPictures
from dreamllm.data.formats.parquet_rows import ParquetRows
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.jsonl import FaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class ObelicsOptions:
    """How documents of OBELICS are read."""

    images: Path | None = None
    """Folder of the downloaded pictures; null: that of the parquet files. Not used for bytes in the row."""
    image_name: str = "{path}"
    """A picture's path in the folder: `path` is what the row says, `url_name url_sha256 url_md5` belong to a
    URL."""
    texts: str = "texts"
    """Column of the texts."""
    pictures: str = "images"
    """Column of the pictures."""
    missing: Missing = "fault"
    """What a picture that cannot be used does: its document cannot be used, or it alone is left out, and
    counted in the metadata."""
    min_images: int = 0
    """A document with fewer pictures left is a fault."""
    metadata: str | None = None
    """Column of JSON that travels with the document, such as general_metadata."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


class ObelicsArchive:
    """The rows of OBELICS."""

    def __init__(self, path: Path, options: ObelicsOptions = ObelicsOptions()) -> None:
        self._options = options
        columns = [options.texts, options.pictures]
        if options.metadata is not None:
            columns.append(options.metadata)
        self._rows = ParquetRows(path, tuple(columns), index_folder=options.index_folder)
        folder = path if path.is_dir() else path.parent
        self._pictures = NamedPictures(
            folder=folder if options.images is None else options.images, name=options.image_name
        )

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First document of each row group, then the number of documents."""
        return self._rows.bounds

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"ObelicsArchive({len(self)} documents, {self._rows.num_files} parquet files)"

    def __getitem__(self, index: int) -> Document:
        row, where, options = self._rows[index], self._rows.where(index), self._options
        texts, pictures = row[options.texts] or [], row[options.pictures] or []
        both = [
            at for at, (text, picture) in enumerate(zip(texts, pictures, strict=False)) if text and picture
        ]
        if len(texts) != len(pictures) or both:
            raise FaultError(
                "wrong_image_count",
                f"{where} has {len(texts)} texts, {len(pictures)} pictures and both at places {both[:5]}; "
                "expected lists of one length with a text or a picture at each place; leave the document out",
            )
        parts: list[Part] = []
        unusable = 0
        for text, picture in zip(texts, pictures, strict=True):
            if text and text.strip():
                parts.append(Text(text=text.strip()))
            if picture:
                try:
                    parts.append(Image(source=self._pictures.find_value(picture, where=where)))
                except FaultError:
                    if options.missing == "fault":
                        raise
                    unusable += 1
        document = Document(
            parts=tuple(parts),
            id=self._rows.name(index),
            metadata=self._metadata(row, where=where)
            | ({"left_out": {"unusable": unusable}} if unusable else {}),
        )
        if len(document.images) < options.min_images:
            raise FaultError(
                "missing_image",
                f"{where} has {len(document.images)} pictures that can be used, and {unusable} that cannot; "
                f"expected {options.min_images}; leave the document out, or lower min_images",
            )
        return document

    def _metadata(self, row: dict[str, Any], *, where: str) -> dict[str, Any]:
        if self._options.metadata is None:
            return {}
        try:
            value = json.loads(row[self._options.metadata] or "{}")
        except (TypeError, ValueError) as error:
            raise FaultError(
                "bad_json", f"{where}: its metadata is not JSON: {error}; leave it out"
            ) from error
        return value if isinstance(value, dict) else {self._options.metadata: value}
