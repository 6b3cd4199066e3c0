"""Pictures with captions in WebDataset tar files, as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json.

Members of one key stand together in their tar file and are read at once. The index of a tar file comes from
its headers alone. A damaged header costs its pair, a cut-off file its last one; both are faults that keep an
index, so that nothing is lost in silence.
"""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64

from dreamllm.data.formats.plain import read_text
from dreamllm.data.index import FileScan, find_files, index_files
from dreamllm.data.picture_files import checked_picture
from dreamllm.data.tar_members import TarDamage, members_of, walk_tar
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError, FaultKind, read_json
from dreamllm.errors import DocumentError

Direction = Literal["read", "draw", "both"]

_PICTURES: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm")
_FAULTS: Final[tuple[FaultKind | None, ...]] = (None, "duplicate_key", "corrupt_archive", "truncated_archive")
_WHOLE, _DUPLICATE, _CORRUPT, _TRUNCATED = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """How pairs of picture and caption are read."""

    direction: Direction = "read"
    """read: the picture, then the caption to learn; draw: the caption, then the picture to learn; both: every
    pair twice, read at even indices and drawn at odd ones."""
    caption: str = "txt"
    """Where the caption is: `txt`, the member of that suffix; else a key of the JSON member."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


class CaptionArchive:
    """The pairs of tar files."""

    def __init__(self, path: Path, options: CaptionOptions = CaptionOptions()) -> None:
        self._options = options
        self._index = index_files(
            find_files(path, (".tar",)), scan_tar, reader="captions", folder=options.index_folder
        )
        self._copies = 2 if options.direction == "both" else 1

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First document of each tar file, then the number of documents."""
        return self._index.bounds * self._copies

    def __len__(self) -> int:
        return len(self._index) * self._copies

    def __repr__(self) -> str:
        return f"CaptionArchive({len(self)} documents, {len(self._index.files)} tar files)"

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} pairs")
        number, row = self._index.locate(index // self._copies)
        key, members = self._read(number, row)
        where = f"{self._index.files[number]}: {key}"
        picture = next((members[suffix] for suffix in _PICTURES if suffix in members), None)
        if picture is None:
            raise FaultError(
                "missing_image",
                f"{where} has members {sorted(members)}; expected a picture ({', '.join(_PICTURES)}); "
                "leave it out",
            )
        source = checked_picture(picture, where=where)
        text, metadata = self._caption(members, where=where)
        if self._is_drawn(index):
            return Document(
                parts=(Text(text=text, learn=False), Image(source=source)), id=key, metadata=metadata
            )
        return Document(parts=(Image(source=source, learn=False), Text(text=text)), id=key, metadata=metadata)

    def size(self, index: int) -> int:
        """1 for a pair that is read, which is the longer, 0 for one that is drawn."""
        return 0 if self._is_drawn(index) else 1

    def _is_drawn(self, index: int) -> bool:
        return self._options.direction == "draw" or (self._copies == 2 and index % 2 == 1)

    def _read(self, number: int, row: int) -> tuple[str, dict[str, bytes]]:
        """Key and members of a pair, by suffix."""
        file = self._index.files[number]
        try:
            offset, size, code = map(int, self._index.row(number, row))
            with file.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        except (OSError, DocumentError, IndexError) as error:
            raise FaultError("corrupt_archive", f"{file}: pair {row} cannot be read: {error}") from error
        where = f"{file}: the pair at byte {offset}"
        kind = _FAULTS[code] or ("truncated_archive" if len(data) < size else None)
        if kind is not None:
            raise FaultError(kind, f"{where} {_TOLD[kind]}")
        members = members_of(data, where=where)
        return split_name(next(iter(members)))[0], {
            split_name(name)[1].lower(): content for name, content in members.items()
        }

    def _caption(self, members: dict[str, bytes], *, where: str) -> tuple[str, dict[str, Any]]:
        """The caption, and what travels with the pair."""
        metadata: Any = {}
        if "json" in members:
            try:
                metadata = read_json(members["json"], name="its JSON")
            except DocumentError as error:
                raise FaultError("bad_json", f"{where}: {error}") from error
        if not isinstance(metadata, dict):
            raise FaultError("bad_json", f"{where}: its JSON is no object; expected one; leave the pair out")
        caption: Any = metadata.get(self._options.caption)
        if self._options.caption == "txt" and "txt" in members:
            caption = read_text(members["txt"], where=where)
        if not isinstance(caption, str) or not caption.strip():
            raise FaultError(
                "missing_text",
                f"{where} has no caption {self._options.caption!r}, but members {sorted(members)} and JSON "
                f"keys {sorted(metadata)[:20]}; expected text; choose another with the option caption",
            )
        return caption.strip(), metadata


_TOLD: Final[dict[FaultKind, str]] = {
    "duplicate_key": "has a key or member that came before; expected every key once; leave it out",
    "corrupt_archive": "has a damaged header; expected members of a tar file; fetch the file again",
    "truncated_archive": "is cut off; expected a whole tar file; fetch the file again",
}


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: what stands before and after the first dot of its last name."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix


def scan_tar(path: Path) -> FileScan:
    """First byte, number of bytes and fault of every key, from the headers of a tar file."""
    rows = array("q")
    seen: set[str] = set()
    key, names, start, end, code = "", set[str](), 0, 0, _WHOLE
    lost: str | None = None

    def close() -> None:
        if names:
            rows.extend((start, end - start, _DUPLICATE if key in seen and code == _WHOLE else code))
            seen.add(key)

    for member in walk_tar(path):
        if isinstance(member, TarDamage):
            close()
            lost, names, code = key, set(), _WHOLE
            rows.extend((member.offset, 0, _TRUNCATED if member.is_at_end else _CORRUPT))
            continue
        next_key, suffix = split_name(member.name)
        if next_key == lost:  # the rest of a pair that is counted as damaged
            continue
        if next_key != key or not names:
            close()
            key, names, start, code = next_key, set(), member.offset, _WHOLE
        if suffix in names:
            code = _DUPLICATE
        if member.is_cut_off:
            code = _TRUNCATED
        names.add(suffix)
        end = member.end
    close()
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 3) if rows else np.zeros((0, 3), np.int64)
    return FileScan(groups=(len(table),), rows=table, faults=int(np.count_nonzero(table[:, 2])))
