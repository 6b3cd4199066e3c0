"""Documents on disk in any format, behind one interface: a length, and a document at every index.

    archive = open_documents("mmc4/", options={"images": "mmc4/images"})
    archive[12345]      # a Document, or a FaultError that says what is wrong with it

Nothing is read through when an archive opens: shards carry an index, parquet files say their row counts,
and for other formats an index is written on first use (`index.py`). What cannot be used keeps its index and
raises a FaultError there; whoever reads decides whether that ends the work or is left out and counted.
Archives hold no open file and travel to worker processes. The formats themselves are in `formats/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dreamllm.config import load_config
from dreamllm.document.document import Document
from dreamllm.errors import ConfigError


@runtime_checkable
class DocumentArchive(Protocol):
    """Documents by index, a pure function of the index; it can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document:
        """The document at an index.

        Raises:
            FaultError: what is there cannot be used as a document.
            IndexError: the index is not below the length.
        """
        ...


@runtime_checkable
class GroupedArchive(DocumentArchive, Protocol):
    """An archive that says which documents lie together, so that reading those near each other is cheap."""

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """Index of the first document of each group, rising, then the number of documents."""
        ...


@runtime_checkable
class SizedArchive(DocumentArchive, Protocol):
    """An archive that knows which of its documents are long without reading them."""

    def size(self, index: int, /) -> int:
        """How long the document at an index is, in a unit of the archive's own: what is longer has more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way to store documents."""

    options: type
    """The dataclass of its options."""
    open: Callable[[Path, Any], GroupedArchive]
    """Opens a path with those options."""


def formats() -> dict[str, Format]:
    """Every format by name."""
    from dreamllm.data import shards  # these modules import this one
    from dreamllm.data.formats import captions, conversations, interleaved, obelics, plain, tables, vqa

    return {
        "shards": Format(options=shards.ShardOptions, open=shards.ShardArchive),
        "documents": Format(options=plain.JsonlOptions, open=plain.open_jsonl),
        "captions": Format(options=captions.CaptionOptions, open=captions.CaptionArchive),
        "mmc4": Format(options=interleaved.Mmc4Options, open=interleaved.open_mmc4),
        "ordered": Format(options=interleaved.OrderedOptions, open=interleaved.open_ordered),
        "obelics": Format(options=obelics.ObelicsOptions, open=obelics.ObelicsArchive),
        "conversations": Format(
            options=conversations.ConversationOptions, open=conversations.open_conversations
        ),
        "vqa": Format(options=vqa.VqaOptions, open=vqa.open_vqa),
        "text": Format(options=plain.TextOptions, open=plain.open_text),
        "table": Format(options=tables.TableOptions, open=tables.TableArchive),
    }


def open_documents(
    path: str | Path, format: str = "auto", options: Mapping[str, Any] | None = None
) -> DocumentArchive:
    """The documents at a path: a file, a folder, or a pattern such as `data/*.tar`.

    Formats are told apart by names, and JSON by its first keys; where they cannot be, `format` must say it.

    Raises:
        ConfigError: the path, the format or an option cannot be meant.
        DocumentError: an index cannot be read or written.
        MissingExtraError: the format needs a package that is not installed.
    """
    from dreamllm.data.formats.detect import detect_format

    path = Path(path)
    known = formats()
    name = detect_format(path) if format == "auto" else format
    if name not in known:
        raise ConfigError(
            f"format {name!r} is unknown; expected auto or one of {', '.join(sorted(known))}; choose one"
        )
    return known[name].open(path, load_config(known[name].options, dict(options or {})))
