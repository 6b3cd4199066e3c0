"""Rows of parquet files, by index. Their footers say how many rows there are and where.

A row cannot be read alone: its row group is, and the last used are kept. Documents of one group are therefore
a group of the archive. Parquet with pictures inside trains faster from shards (`dreamllm data shard`).
"""

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from dreamllm.data.index import FileIndex, FileScan, find_files, index_files
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import pyarrow


class ParquetRows:
    """Rows as dictionaries of the columns that are asked for."""

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        *,
        index_folder: Path | None = None,
        max_cached_bytes: int = 2**30,
    ) -> None:
        """Open the files of a path.

        Raises:
            MissingExtraError: pyarrow is not installed.
            ConfigError: the first file lacks a column.
        """
        _parquet()
        self._index: FileIndex = index_files(
            find_files(path, (".parquet",)), _row_groups, reader="parquet", folder=index_folder
        )
        self._columns = columns
        _check_columns(self._index.files[0], columns)
        self._max_cached_bytes = max_cached_bytes
        self._cached: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached": OrderedDict(), "_cached_bytes": 0}

    @property
    def bounds(self) -> Int64[np.ndarray, "n"]:
        """First row of each row group, then the number of rows."""
        return self._index.bounds

    @property
    def num_files(self) -> int:
        """Parquet files."""
        return len(self._index.files)

    def __len__(self) -> int:
        return len(self._index)

    def where(self, index: int) -> str:
        """File and row, for messages."""
        file, row = self._index.locate(index)
        return f"{self._index.files[file]}: row {row}"

    def name(self, index: int) -> str:
        """A name of the row that is its own among all files."""
        file, row = self._index.locate(index)
        return f"{self._index.files[file].stem}-{row}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, _ = self._index.locate(index)
        group = int(np.searchsorted(self.bounds, index, side="right")) - 1
        table = self._cached.get(group)
        if table is None:
            first = int(np.searchsorted(self.bounds, int(self._index.first[file]), side="right")) - 1
            table = self._read(self._index.files[file], group - first)
            self._cached[group] = table
            self._cached_bytes += table.nbytes
            while len(self._cached) > 1 and self._cached_bytes > self._max_cached_bytes:
                self._cached_bytes -= self._cached.popitem(last=False)[1].nbytes
        self._cached.move_to_end(group)
        rows: list[dict[str, Any]] = table.slice(index - int(self.bounds[group]), 1).to_pylist()
        return rows[0]

    def _read(self, file: Path, group: int) -> "pyarrow.Table":
        parquet = _parquet()
        errors: tuple[type[Exception], ...] = (*_read_errors(), IndexError)
        try:
            with parquet.ParquetFile(file) as opened:
                number = [at for at in range(opened.num_row_groups) if opened.metadata.row_group(at).num_rows]
                return opened.read_row_group(number[group], columns=list(self._columns))
        except errors as error:
            raise FaultError(
                "truncated_archive",
                f"{file} cannot be read as parquet: {str(error).splitlines()[0]}; expected a whole file; "
                "fetch it again",
            ) from error


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    """Refuse columns that a file does not have; a file that cannot be read is a fault when it is."""
    try:
        names = set(_parquet().read_schema(path).names)
    except _read_errors():
        return
    if missing := [column for column in columns if column not in names]:
        raise ConfigError(
            f"{path} has columns {sorted(names)}, not {', '.join(missing)}; expected {', '.join(columns)}; "
            "correct the options that name columns"
        )


def column_names(path: Path) -> set[str]:
    """Names of the columns of a file.

    Raises:
        ConfigError: it cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    parquet, errors = _parquet(), _read_errors()
    try:
        return set(parquet.read_schema(path).names)
    except errors as error:
        raise ConfigError(
            f"{path} cannot be read as parquet: {str(error).splitlines()[0]}; expected a whole file; "
            "fetch it again, or name the format"
        ) from error


def _row_groups(path: Path) -> FileScan:
    """Rows of each group; a file that is cut off or damaged counts as one row that cannot be read."""
    try:
        with _parquet().ParquetFile(path) as file:
            sizes = tuple(file.metadata.row_group(at).num_rows for at in range(file.num_row_groups))
    except _read_errors():
        return FileScan(groups=(1,), faults=1)
    return FileScan(groups=tuple(size for size in sizes if size))


def _read_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading parquet needs pyarrow, which is not installed; expected the extra 'data'; "
            "run: pip install 'dreamllm[data]'"
        ) from error
    return pyarrow.parquet
