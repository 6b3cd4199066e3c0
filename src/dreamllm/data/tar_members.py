"""Members of tar files: in a stretch that was read at once; and where they are in a file, damaged or not."""

import io
import os
import tarfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dreamllm.document.jsonl import FaultError

_BLOCK: Final = tarfile.BLOCKSIZE


def members_of(data: bytes, *, where: str) -> dict[str, bytes]:
    """The files in a stretch of a tar file, in their order.

    Raises:
        FaultError: there are none, or they cannot be read.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:
                    members[member.name] = stream.read()
        if not members:
            raise tarfile.ReadError("no member is there")
    except tarfile.TarError as error:
        raise FaultError(
            "corrupt_archive",
            f"{where} is not a stretch of a tar file: {error}; expected whole members; fetch the file again, "
            "or open the archive again if the file has changed",
        ) from error
    return members


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A file in a tar file, by places in it."""

    name: str
    offset: int
    """Of its header."""
    data: int
    """Of its first byte."""
    size: int
    """Of its data."""
    end: int
    """Where the next header would be."""
    is_cut_off: bool
    """Whether the tar file ends in its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarDamage:
    """A place where no header can be read, after which others may follow."""

    offset: int
    is_at_end: bool
    """Whether the tar file ends there, in the middle of a header."""


def walk_tar(path: Path) -> Generator[TarMember | TarDamage, None, None]:
    """The files in a tar file. `tarfile` ends at a damaged header as if it were the end; this goes on."""
    size = path.stat().st_size
    place = 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            place = yield from _walk_whole(file, size)
            if place >= size:
                return
            file.seek(place)
            block = file.read(_BLOCK)
            if not block.strip(b"\0") and len(block) == _BLOCK:
                return
            yield TarDamage(offset=place, is_at_end=len(block) < _BLOCK)
            place = _next_header(file, place + _BLOCK, size)


def _walk_whole(file: BinaryIO, size: int) -> Generator[TarMember, None, int]:
    """Members from where the file stands to the first place without a header, which is returned."""
    place = file.tell()
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller's file stays open
    except tarfile.ReadError:
        return place
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            return place
        if member is None:
            return place
        place = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
        tar.members.clear()  # type: ignore[attr-defined]  # it would hold every header of the file
        if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
            yield TarMember(
                name=member.name,
                offset=member.offset,
                data=member.offset_data,
                size=member.size,
                end=place,
                is_cut_off=member.offset_data + member.size > size,
            )


def _next_header(file: BinaryIO, place: int, size: int) -> int:
    """The next place where a header can be read; the size of the file if there is none."""
    while place < size:
        file.seek(place)
        block = file.read(_BLOCK)
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                pass
            else:
                return place
        place += _BLOCK
    return size
