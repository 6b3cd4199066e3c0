"""Pictures by name in tar files, which are indexed when a picture of theirs is first asked for.

A table beside the tar file (or in the folder of the index) holds a row a member: 63 bits of the digest of its
name, first byte, size; rows rise by digest and are found by bisection. The first row is size and time of the
tar file, by which a table that is out of date is known.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from dreamllm.data.index import INDEX_FOLDER, TableFiles, building, index_path, write_table
from dreamllm.data.picture_files import checked_picture
from dreamllm.data.tar_members import TarMember, walk_tar
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import DocumentError

_CUT_OFF: Final = -1


@dataclass(slots=True, kw_only=True, eq=False)
class TarPictures:
    """Reads pictures out of tar files."""

    index_folder: Path | None = None
    """Where tables are kept; None: `.dreamllm` beside each tar file."""
    _tables: TableFiles = field(default_factory=TableFiles)

    def read(self, tar: Path, name: str, *, where: str) -> bytes:
        """The picture of that name in a tar file.

        Raises:
            FaultError: it is not there once, is cut off, or does not start like a picture.
            DiskError: the table cannot be written.
        """
        try:
            status = tar.stat()
            table = self._table(tar, (status.st_size, status.st_mtime_ns))
            digest = _digest(name)
            row = 1 + int(np.searchsorted(table[1:, 0], digest))
            found = table[row : row + 2][table[row : row + 2, 0] == digest]
            if len(found) != 1:
                raise FaultError(
                    "missing_image" if len(found) == 0 else "duplicate_key",
                    f"{where}: {tar} has {len(found)} members {name!r} or more; expected one; "
                    "leave the document out, or correct the option that names pictures",
                )
            offset, size = int(found[0, 1]), int(found[0, 2])
            with tar.open("rb") as file:
                file.seek(offset)
                data = file.read(max(size, 0))
        except OSError as error:
            raise FaultError(
                "missing_image",
                f"{where}: picture {name!r} of {tar} cannot be read ({error}); expected a tar file there; "
                "restore it, or correct the option that names pictures",
            ) from error
        if size == _CUT_OFF or len(data) < size:
            raise FaultError(
                "truncated_archive", f"{where}: {tar} ends in {name!r}; expected a whole file; fetch it again"
            )
        return checked_picture(data, where=where)

    def _table(self, tar: Path, stamp: tuple[int, int]) -> Int64[np.ndarray, "n 3"]:
        folder = tar.parent / INDEX_FOLDER if self.index_folder is None else self.index_folder
        path = index_path(folder, tar, root=tar.parent, purpose="members", suffix=".npy")
        table = self._fitting_table(path, stamp)
        if table is None:
            with building(path):
                table = self._fitting_table(path, stamp)  # another process may have built it
                if table is None:
                    _write_members(path, tar, stamp)
                    table = self._tables(path)
        return table

    def _fitting_table(self, path: Path, stamp: tuple[int, int]) -> Int64[np.ndarray, "n 3"] | None:
        """The table of a tar file of this size and time; None if there is none, or it is damaged."""
        try:
            table = self._tables(path)
        except DocumentError:
            return None
        if tuple(map(int, table[0, :2])) == stamp:
            return table
        self._tables.forget(path)
        return None


def _write_members(path: Path, tar: Path, stamp: tuple[int, int]) -> None:
    members = [member for member in walk_tar(tar) if isinstance(member, TarMember)]
    rows = sorted(
        (_digest(member.name), member.data, _CUT_OFF if member.is_cut_off else member.size)
        for member in members
    )
    write_table(path, np.asarray([(*stamp, 0), *rows], dtype=np.int64))


def _digest(name: str) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
