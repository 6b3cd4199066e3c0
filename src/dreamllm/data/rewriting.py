"""Documents that a filter keeps, from one place to another; and a folder that appears whole or never."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamllm.data.filters import Filter
from dreamllm.data.measures import Documents, MeasureOptions, measure_all
from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document
from dreamllm.errors import DocumentError


def kept_documents(
    documents: Documents,
    indices: Iterable[int],
    *,
    filter_: Filter,
    options: MeasureOptions,
    num_workers: int = 0,
) -> Iterator[Document]:
    """The documents that a filter keeps, in order; the filter counts the others.

    Raises:
        FaultError: a document cannot be used, and the rules say `on_fault: raise`.
        ConfigError: a rule needs what the options do not measure.
    """
    for index, facts in measure_all(documents, indices, options=options, num_workers=num_workers):
        if filter_.keeps(index, facts):
            yield documents[index]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends without an error; after one nothing is left.

    Raises:
        DocumentError: `path` exists, cannot be made, or the disk is full.
    """
    if os.path.lexists(path):
        raise DocumentError(
            f"{path} exists; expected a new folder, since nothing is overwritten; choose another name"
        )
    aside = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        made = _make_parents(path.parent)
        try:
            aside.mkdir()
            yield aside
            aside.rename(path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):  # somebody else may have written there meanwhile
                for folder in made:
                    folder.rmdir()
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        DocumentError: it cannot be written, or the disk is full.
    """
    try:
        write_bytes(path, data)
    except OSError as error:  # of the disk, while bytes are written
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> DocumentError:
    return DocumentError(
        f"cannot write {path}: {error.strerror or error}; expected a place that takes new files, with enough "
        "free space; check the path, its permissions and the disk"
    )


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder with its parents; gives those that are new, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
