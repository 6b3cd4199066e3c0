"""Writes a feature cache: a shard at a time, whole or not at all, so that a stopped run goes on where it was.

Processes may write into one folder at once: a shard is named for what is in it. The index is written when
they are done, and again by whoever is done later.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dreamllm.data.feature_cache import (
    INDEX_FILE,
    SPEC_FILE,
    CacheSpec,
    FeatureCache,
    as_words,
    check_key,
    checksum,
    open_index,
    read_spec,
    shard_digests,
    shard_names,
)
from dreamllm.document.atomic import write_bytes
from dreamllm.errors import ConfigError, DocumentError

SHARD_BYTES = 2**28
"""Records of a shard; the writer holds as many in memory, and as many again while it writes them."""


class FeatureCacheWriter:
    """Adds entries to a cache. As a context it writes what is left, and the index, when the block ends; after
    an error it writes neither, and whole shards stay."""

    def __init__(
        self, folder: str | Path, spec: CacheSpec, *, shard_bytes: int = SHARD_BYTES, index: bool = True
    ) -> None:
        """Makes the folder, or goes on in it. Without `index` the end of the block leaves the index alone:
        for many small writers that are followed by one `write_index`.

        Raises:
            ConfigError: it holds something else, or entries of another type.
            DocumentError: a file in it is damaged.
            DiskError: it cannot be written.
        """
        self.folder = Path(folder)
        self.spec = spec
        self._writes_index = index
        self.num_written = 0
        """Entries in shards that this writer has written."""
        if not (self.folder / SPEC_FILE).is_file():
            write_bytes(self.folder / SPEC_FILE, json.dumps(spec.to_dict(), indent=1).encode() + b"\n")
        there = read_spec(self.folder)
        check_key(self.folder, there, spec)
        if there.dtype != spec.dtype:
            raise ConfigError(
                f"the cache {self.folder} holds {there.dtype} records, not {spec.dtype}; expected one type "
                "in a cache; go on with its type, or write another folder"
            )
        indexed = open_index(self.folder)
        if indexed is not None and not set(indexed.names) <= set(shard_names(self.folder)):
            write_index(
                self.folder
            )  # damaged shards have been deleted: their entries are to be computed again
        self._cache = FeatureCache(self.folder)
        self._records_per_shard = max(1, shard_bytes // spec.record_bytes)
        self._waiting: dict[bytes, Tensor] = {}
        self._done: set[bytes] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.flush()
            if self._writes_index:
                write_index(self.folder)

    def __contains__(self, digest: bytes) -> bool:
        """Whether the entry was there, or has been added since."""
        return digest in self._waiting or digest in self._done or digest in self._cache

    def add(self, digest: bytes, record: Tensor) -> None:
        """Take a record; nothing happens if the picture's is there.

        Raises:
            DocumentError: the record has another shape, or values that its type cannot hold.
            DiskError: its shard cannot be written.
        """
        if digest in self:
            return
        stored = record.detach().to("cpu", self.spec.torch_dtype, copy=True).contiguous()
        if stored.shape != self.spec.shape or not bool(torch.isfinite(stored).all()):
            raise DocumentError(
                f"the record of picture {digest.hex()} has shape {tuple(stored.shape)} and values up to "
                f"{float(record.abs().max()):g}; expected {self.spec.shape} and what {self.spec.dtype} "
                "holds; choose a wider type"
            )
        self._waiting[digest] = stored
        if len(self._waiting) >= self._records_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one shard.

        Raises:
            DiskError: it cannot be written.
        """
        if not self._waiting:
            return
        digests = sorted(self._waiting)
        records = torch.stack([self._waiting[digest] for digest in digests])
        tensors = {
            "records": records,
            "digests": torch.from_numpy(as_words(digests)),
            "checksums": torch.tensor([checksum(record) for record in records], dtype=torch.uint32),
        }
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:24]
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        write_bytes(self.folder / f"{name}.safetensors", data)
        self.num_written += len(digests)
        self._done.update(digests)
        self._waiting.clear()


def write_index(folder: str | Path) -> int:
    """Take all shards of a cache into its index; the number of its entries, each picture once.

    Raises:
        DocumentError: a shard is damaged.
        DiskError: the index cannot be written.
    """
    folder = Path(folder)
    spec, names = read_spec(folder), shard_names(folder)
    tables = [shard_digests(folder / name, spec) for name in names]
    digests = np.concatenate([np.empty((2, 0), dtype=np.uint64), *tables], axis=1)
    shards = _concatenated(np.full(table.shape[1], number) for number, table in enumerate(tables))
    rows = _concatenated(np.arange(table.shape[1]) for table in tables)
    order = np.lexsort((digests[1], digests[0]))
    digests = digests[:, order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (digests[:, 1:] != digests[:, :-1]).any(axis=0)
    kept = order[is_first]
    tensors = {
        "digests": torch.from_numpy(np.ascontiguousarray(digests[:, is_first])),
        "shards": torch.from_numpy(shards[kept]),
        "rows": torch.from_numpy(rows[kept]),
    }
    write_bytes(folder / INDEX_FILE, save(tensors, metadata={"names": json.dumps(names)}))
    return len(kept)


def _concatenated(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int32), *(part.astype(np.int32) for part in parts)])
