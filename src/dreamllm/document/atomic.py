"""Writing files so that a reader sees the old file or the whole new one, never a part of it.

The one place where an error of the disk, above all of a full one, becomes a line that says what to do.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from dreamllm.errors import DiskError, DreamLLMError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk is full, a quota is used up, a file may not grow."""
_SHORT_WRITE: Final = re.compile(r"\d+ requested and \d+ written|unexpected pos|file write failed")
"""How numpy and torch tell that not all bytes were taken."""


@contextmanager
def writing(path: Path, *, size_bytes: int = 0) -> Iterator[None]:
    """Around what writes `path`, a file or a folder, and reads nothing: one error for all that hinders it.

    `size_bytes` is how much is to be written, as far as it is known.

    Raises:
        DiskError: the disk is full, or the place takes no files; from the libraries' own errors too.
    """
    try:
        yield
    except DreamLLMError:
        raise
    except Exception as error:
        if (why := _why_full(error)) is not None:
            raise _is_full(path, why, size_bytes) from error
        if not isinstance(error, OSError):
            raise
        raise DiskError(
            f"cannot write {path}: {error.strerror or error}; expected a place that takes new files; check "
            "the path and its permissions"
        ) from error


@contextmanager
def replacing(path: Path, *, size_bytes: int = 0) -> Iterator[BinaryIO]:
    """A file to write beside `path`, which takes its place when the block ends without an error.

    Missing folders are made. After an error the old file stands as it was. `size_bytes` is how much is to be
    written, as far as it is known.

    Raises:
        DiskError: the folder or the file cannot be written, or the disk is full. Other errors of the block,
            which may read files, are its own.
    """
    aside = path.parent / f".{secrets.token_hex(8)}.tmp"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("xb")
    try:
        try:
            yield file
        except Exception as error:
            if isinstance(error, DreamLLMError) or (why := _why_full(error)) is None:
                raise
            raise _is_full(path, why, max(size_bytes, file.tell())) from error
        with writing(path, size_bytes=max(size_bytes, file.tell())):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(aside, path)
    finally:
        with suppress(OSError):  # of bytes that still wait for a full disk: the file is thrown away
            file.close()
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once; see `replacing`."""
    with replacing(path, size_bytes=len(data)) as file:
        file.write(data)


def replace_folder(new: Path, path: Path) -> None:
    """Rename a folder to `path`, and delete the one that stands there; it comes back if the rename fails."""
    old = new.with_name(f"{new.name}.old")
    try:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed here
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
    flush_to_disk(path.parent)
    if old.exists():
        shutil.rmtree(old)


def flush_to_disk(path: Path) -> None:
    """Push a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder; its renames are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_full(error: Exception) -> str | None:
    """What is said of a disk that takes no more bytes; None if that is not the error."""
    said = str(error)  # libraries that are not written in Python pass on the words without the number
    for number in _FULL:
        if getattr(error, "errno", None) == number or os.strerror(number) in said:
            return os.strerror(number)
    return "not all bytes could be written" if _SHORT_WRITE.search(said) else None


def _is_full(path: Path, why: str, size_bytes: int) -> DiskError:
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    room = f"room for {_mebibytes(size_bytes)}" if size_bytes else "more room"
    free = "" if there is None else f", of which {_mebibytes(shutil.disk_usage(there).free)} are free"
    return DiskError(
        f"cannot write {path}: {why}; expected {room} on its disk{free}; make room, or raise "
        "the quota or the limit, and run it again; what was written before is untouched"
    )


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
