"""Where documents are inside files that do not say so: found once, kept on disk, checked against the files.

    FOLDER/READER-xxxxxxxxxxxx.json    the catalog: every file with size, time of change and its documents
    FOLDER/NAME-xxxxxxxxxxxx.npy       a table of int64 a file: one row a document, columns as a reader likes
    FOLDER/*.lock                      empty; held by the process that builds, while others wait for it

The folder is `.dreamllm` beside the data unless one is given; beside the data it may be moved and copied with
them. A file whose size or time changed is read through again, all others keep their tables; an interrupted
first reading goes on where the catalog ends. Opening an unchanged archive costs the catalog and one `stat` a
file. Of several processes one builds; a killed one loses its lock, and another goes on.
"""

import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int64

from dreamllm.document.atomic import replacing, write_bytes, writing
from dreamllm.errors import ConfigError, DiskError, DocumentError

logger = logging.getLogger(__name__)

INDEX_FOLDER: Final = ".dreamllm"
_VERSION: Final = 1
_SAVE_EVERY_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.2
"""How often whoever waits for a lock tries it."""
_OPEN_TABLES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileScan:
    """What one reading of a file found."""

    groups: tuple[int, ...]
    """Documents of each stretch of the file that is read at once; most formats have one stretch."""
    rows: Int64[np.ndarray, "n k"] | None = None
    """Where the documents are; None where the file itself knows."""
    faults: int = 0
    """Documents among them that are known to be unusable."""


class TableFiles:
    """Memory-mapped tables of int64, of which the last used few stay open; travels to other processes."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open = OrderedDict()

    def __call__(self, path: Path) -> Int64[np.ndarray, "n k"]:
        """The table in a file.

        Raises:
            DocumentError: it is missing or damaged.
        """
        table = self._open.get(path)
        if table is None:
            try:
                table = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DocumentError(
                    f"the index {path} cannot be read ({error}); expected a table of int64; remove the "
                    f"folder {path.parent} if it is an index, or write the shards again if it is theirs"
                ) from error
            self._open[path] = table
            if len(self._open) > _OPEN_TABLES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return table

    def forget(self, path: Path) -> None:
        """Open a file anew when it is next asked for."""
        self._open.pop(path, None)


def write_table(path: Path, rows: Int64[np.ndarray, "n k"]) -> None:
    """Write a table that `TableFiles` reads; the file appears whole or not at all."""
    with replacing(path) as file:
        table = np.ascontiguousarray(rows, dtype="<i8")
        # np.save would write past the file object, and lose the reason when the disk is full
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(table))
        file.write(table.data)


@dataclass(slots=True, kw_only=True, eq=False)
class FileIndex:
    """Files and the documents in each."""

    files: tuple[Path, ...]
    tables: tuple[Path, ...]
    """Table of each file; there is none on disk where the file itself knows."""
    bounds: Int64[np.ndarray, "n"]
    """First document of each group, then the number of documents; groups do not cross files."""
    first: Int64[np.ndarray, "n"]
    """First document of each file, then the number of documents."""
    num_faults: int
    _read: TableFiles = field(default_factory=TableFiles)

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the file, and the document's number in it.

        Raises:
            IndexError: the index is not below the length.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in {self.files[0].parent}")
        file = int(np.searchsorted(self.first, index, side="right")) - 1
        return file, index - int(self.first[file])

    def row(self, file: int, number: int) -> Int64[np.ndarray, "k"]:
        """The row of a document in the table of its file."""
        row: np.ndarray = self.table(file)[number]
        return row

    def table(self, file: int) -> Int64[np.ndarray, "n k"]:
        """The table of a file, memory-mapped."""
        return self._read(self.tables[file])


def find_files(path: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """The files at a path, sorted: itself, those of a folder with one of the suffixes, or those of a pattern.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file():
        return (path,)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name.endswith(tuple(suffixes))]
    else:
        # the longest leading folders without a wildcard, then the pattern below them
        plain = next((folder for folder in path.parents if not set("*?[") & set(str(folder))), Path())
        found = list(plain.glob(str(path.relative_to(plain)))) if set("*?[") & set(str(path)) else []
    files = tuple(sorted(file for file in found if file.is_file() and not file.name.startswith(".")))
    if not files:
        raise ConfigError(
            f"{path} holds no files of this format; expected a file, a folder with files that end in "
            f"{', '.join(suffixes)}, or a pattern that names some; correct the path"
        )
    return files


def index_files(
    files: Sequence[Path],
    scan: Callable[[Path], FileScan],
    *,
    reader: str,
    folder: Path | None = None,
) -> FileIndex:
    """The index of files, read from disk where it is there and fits, made by `scan` where not.

    `reader` names what a scan depends on besides its file: the format and those options that matter to it.

    Raises:
        DocumentError: a file cannot be read.
        DiskError: the index cannot be written.
    """
    root = files[0].parent
    folder = root / INDEX_FOLDER if folder is None else folder
    catalog = index_path(folder, root / reader.split()[0], root=root, purpose=reader, suffix=".json")
    tables = tuple(index_path(folder, file, root=root, purpose=reader, suffix=".npy") for file in files)
    entries = _known_entries(catalog, files, root)
    if None in entries:
        with building(catalog):  # what another process built meanwhile is known now
            entries = _build(catalog, files, tables, scan, root=root)
    known = [entry for entry in entries if entry is not None]
    groups = [entry["groups"] for entry in known]
    index = FileIndex(
        files=tuple(files),
        tables=tables,
        bounds=_cumulative([size for sizes in groups for size in sizes if size]),
        first=_cumulative([sum(sizes) for sizes in groups]),
        num_faults=sum(entry["faults"] for entry in known),
    )
    if index.num_faults:
        logger.warning("%s: %d of %d documents cannot be used", root, index.num_faults, len(index))
    return index


def index_path(folder: Path, file: Path, *, root: Path, purpose: str, suffix: str) -> Path:
    """Where what is known of a file is kept; a folder that is not below `root` may be shared by many data."""
    home = "" if folder.parent == root else str(root.absolute())
    parts = (str(_VERSION), purpose, home, os.path.relpath(file, root))
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"{file.name}-{digest[:12]}{suffix}"


@contextmanager
def building(path: Path) -> Iterator[None]:
    """Around what builds `path`: one process at a time, all others wait here. The lock of one that ends, in
    whatever way, is free.

    Raises:
        DiskError: the folder takes no files.
    """
    file = path.with_suffix(".lock")
    lock = FileLock(file)
    _keep(partial(_acquire, lock, file))
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, file: Path) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process builds the index; waiting until it lets %s go", file)
            lock.acquire(poll_interval=_LOOK_EVERY_S)


def _known_entries(catalog: Path, files: Sequence[Path], root: Path) -> list[dict[str, Any] | None]:
    """What the catalog says of each file; None of those that it does not know as they are."""
    known = _read_catalog(catalog)
    entries = [known.get(os.path.relpath(file, root)) for file in files]
    return [
        entry if entry is not None and [entry["size"], entry["mtime_ns"]] == _stamp(file) else None
        for file, entry in zip(files, entries, strict=True)
    ]


def _build(
    catalog: Path,
    files: Sequence[Path],
    tables: Sequence[Path],
    scan: Callable[[Path], FileScan],
    *,
    root: Path,
) -> list[dict[str, Any] | None]:
    """Entries of all files, those that the catalog does not know by scanning them."""
    entries = _known_entries(catalog, files, root)
    kept, saved = _read_catalog(catalog), time.monotonic()
    for number, (file, table) in enumerate(zip(files, tables, strict=True)):
        if entries[number] is not None:
            continue
        size, mtime_ns = _stamp(file)
        found = _scan(scan, file)
        if found.rows is not None:
            _keep(partial(write_table, table, found.rows))
        entry = {"size": size, "mtime_ns": mtime_ns, "groups": list(found.groups), "faults": found.faults}
        entries[number] = kept[os.path.relpath(file, root)] = entry
        if time.monotonic() - saved > _SAVE_EVERY_S:
            _write_catalog(catalog, kept)
            saved = time.monotonic()
            logger.info("indexed %d of %d files of %s", number + 1, len(files), root)
    _write_catalog(catalog, kept)
    return entries


def _scan(scan: Callable[[Path], FileScan], file: Path) -> FileScan:
    try:
        return scan(file)
    except OSError as error:
        raise DocumentError(
            f"cannot read {file}: {error.strerror or error}; expected a readable file; check its permissions"
        ) from error


def _cumulative(sizes: Sequence[int]) -> Int64[np.ndarray, "n"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, dtype=np.int64))])


def _stamp(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError as error:
        raise DocumentError(
            f"cannot read {file}: {error.strerror or error}; expected a file there; check the path"
        ) from error
    return [status.st_size, status.st_mtime_ns]


def _read_catalog(path: Path) -> dict[str, dict[str, Any]]:
    """What is known of files; nothing where there is no catalog, or a damaged one: it is made anew."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_catalog(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    _keep(partial(write_bytes, path, json.dumps(entries).encode()))


def _keep(write: Callable[[], None]) -> None:
    try:
        write()
    except DiskError as error:
        raise DiskError(
            f"the index of the documents cannot be kept: {error}; or give another place with the option "
            "index_folder"
        ) from error
