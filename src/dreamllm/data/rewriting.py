"""Documents that a filter keeps, from one place to another; and a folder that appears whole or never."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamllm.data.filters import Filter
from dreamllm.data.measures import Documents, MeasureOptions, measure_all
from dreamllm.document.atomic import writing
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
        DocumentError: `path` exists.
        DiskError: it cannot be made, or the disk is full.
    """
    if os.path.lexists(path):
        raise DocumentError(
            f"{path} exists; expected a new folder, since nothing is overwritten; choose another name"
        )
    aside = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    with writing(path):
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


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder with its parents; gives those that are new, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
