"""Writing files so that a reader sees the old file or the whole new one, never a part of it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dreamllm.errors import DocumentError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`, which takes its place when the block ends without an error.

    Missing folders are made. After an error the old file stands as it was.

    Raises:
        DocumentError: the folder or the file cannot be written.
    """
    aside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("xb")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(aside, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def _cannot_write(path: Path, error: OSError) -> DocumentError:
    return DocumentError(
        f"cannot write {path}: {error.strerror or error}; expected a folder that takes new files; "
        "check the path, its permissions and the free space"
    )
