"""A cache of what a frozen model says of pictures: features, moments of latents, codes.

    cache.json          what an entry is: its key (model, layer, preprocessing), shape and type
    NAME.safetensors    a shard, sorted by digest: `records` (n, *shape), `digests` (2, n), `checksums` (n,)
    index.safetensors   where every picture is: `digests` (2, n) sorted, `shards` (n,), `rows` (n,)

Entries are found by the content of their picture (`picture_digest.py`). Everything is memory-mapped and found
by bisection: opening costs the same for a thousand entries and for a billion, a look-up a few pages. Shards
younger than the index are looked through one by one until `write_index` takes them in. Written by
`feature_cache_writer.py`.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dreamllm.errors import ConfigError, DocumentError

CacheDtype = Literal["float32", "float16", "bfloat16", "int32"]
SPEC_FILE: Final = "cache.json"
INDEX_FILE: Final = "index.safetensors"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What an entry of a cache is."""

    key: Mapping[str, Any]
    """JSON values that decide what is computed: caches of different keys are never mixed."""
    shape: tuple[int, ...]
    """Of one record."""
    dtype: CacheDtype = "float16"
    """In which records are stored; no part of what a run asks for."""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(CacheDtype) or not self.shape or min(self.shape) < 1:
            raise ConfigError(
                f"a cache cannot hold records of shape {self.shape} and type {self.dtype!r}; expected sizes "
                f"of 1 or more and one of {', '.join(get_args(CacheDtype))}; correct them"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch knows it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def record_bytes(self) -> int:
        """Size of one record."""
        return int(np.prod(self.shape)) * self.torch_dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `read_spec` reads it back."""
        return {"format": FORMAT, "key": dict(self.key), "shape": list(self.shape), "dtype": self.dtype}


def read_spec(folder: Path) -> CacheSpec:
    """What the entries of a cache are.

    Raises:
        ConfigError: there is no cache in the folder.
        DocumentError: its description is damaged or of another format.
    """
    file = folder / SPEC_FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        found = value["format"]
        spec = CacheSpec(key=value["key"], shape=tuple(value["shape"]), dtype=value["dtype"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no cache: there is no {SPEC_FILE}; expected a folder that `dreamllm data cache` "
            "wrote; run it, or correct the path"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DocumentError(
            f"{file} cannot be read: {type(error).__name__}: {error}; expected the description of a cache; "
            "compute the cache again in a new folder"
        ) from error
    if found != FORMAT:
        raise DocumentError(
            f"{file} has format {found!r}; expected {FORMAT}; compute the cache again in a new folder"
        )
    return spec


def check_key(folder: Path, there: CacheSpec, wanted: CacheSpec) -> None:
    """Refuse a cache that holds something else than what is asked for.

    Raises:
        ConfigError: it does; the message names every difference.
    """
    found, expected = ({"shape": list(spec.shape), **_flat(spec.key)} for spec in (there, wanted))
    names = sorted(found.keys() | expected.keys())
    differing = [name for name in names if found.get(name) != expected.get(name)]
    if differing:
        told = "; ".join(f"{name} is {found.get(name)!r}, not {expected.get(name)!r}" for name in differing)
        raise ConfigError(
            f"the cache {folder} was computed for something else: {told}; expected what this run would "
            "compute; run `dreamllm data cache` into another folder, or leave the cache out"
        )


class FeatureCache:
    """Reads a cache. Survives pickling: another process opens the files again."""

    def __init__(self, folder: str | Path, wanted: CacheSpec | None = None) -> None:
        """`wanted` is what a run would compute, in whatever type; None takes what is there.

        Raises:
            ConfigError: there is no cache, or one of something else.
            DocumentError: a file is damaged or missing; the message names it.
        """
        self.folder = Path(folder)
        self.spec = read_spec(self.folder)
        if wanted is not None:
            check_key(self.folder, self.spec, wanted)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "spec": self.spec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.spec = state["folder"], state["spec"]
        self._open()

    def __len__(self) -> int:
        """Entries; a picture that is in several shards counts once where the index knows them."""
        return sum(table.highs.shape[0] for table in self._tables)

    def __contains__(self, digest: bytes) -> bool:
        return self._place(digest) is not None

    def get(self, digest: bytes) -> Tensor | None:
        """The record of a picture, a copy; None if it is not there.

        Raises:
            DocumentError: its shard is damaged; the message names it.
        """
        record = self.view(digest)
        return None if record is None else record.clone()

    def view(self, digest: bytes) -> Tensor | None:
        """The record as it lies in the mapped file, for who copies it anyway: nobody may write to it.

        Raises:
            DocumentError: its shard is damaged; the message names it.
        """
        place = self._place(digest)
        if place is None:
            return None
        name, row = place
        shard = self._shards.get(name)
        if shard is None:
            shard = self._shards[name] = _Shard.open(self.folder / name, self.spec)
        record = shard.records[row]
        if checksum(record) != int(shard.checksums[row]):
            raise _damaged(self.folder / name, f"record {row} is not what was written")
        return record

    def empty(self) -> Tensor:
        """No records, (0, *shape)."""
        return torch.empty(0, *self.spec.shape, dtype=self.spec.torch_dtype)

    def _open(self) -> None:
        self._shards: dict[str, _Shard] = {}
        present = shard_names(self.folder)
        index = open_index(self.folder)
        self._tables = [index] if index is not None and len(index.highs) else []
        known = set(index.names) if index is not None else set()
        if missing := sorted(known - set(present)):
            raise DocumentError(
                f"{self.folder / INDEX_FILE} names {len(missing)} shards that are not there, first "
                f"{missing[0]}; expected every shard beside its index; bring them back, or run "
                "`dreamllm data cache` again, which computes what is missing"
            )
        for name in present:
            if name not in known:
                self._shards[name] = shard = _Shard.open(self.folder / name, self.spec)
                self._tables.append(Table(names=(name,), highs=shard.digests[0], lows=shard.digests[1]))

    def _place(self, digest: bytes) -> tuple[str, int] | None:
        high, low = as_words([digest])[:, 0]
        for table in self._tables:
            if (found := table.find(high, low)) is not None:
                return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Sorted digests and where their records are."""

    names: tuple[str, ...]
    """Shards."""
    highs: np.ndarray
    """(n,) uint64, rising: the first 8 bytes of each digest."""
    lows: np.ndarray
    """(n,) uint64: the other 8."""
    shards: np.ndarray | None = None
    """(n,) int32 numbers of shards; None where there is one."""
    rows: np.ndarray | None = None
    """(n,) int32 rows in their shard; None where records lie as the digests do."""

    def find(self, high: np.uint64, low: np.uint64) -> tuple[str, int] | None:
        """Shard and row of a digest."""
        at = int(np.searchsorted(self.highs, high))
        while at < len(self.highs) and self.highs[at] == high:
            if self.lows[at] == low:
                shard = 0 if self.shards is None else int(self.shards[at])
                return self.names[shard], at if self.rows is None else int(self.rows[at])
            at += 1
        return None


def shard_names(folder: Path) -> list[str]:
    """File names of the shards of a cache."""
    names = (file.name for file in folder.glob("*.safetensors"))
    return sorted(name for name in names if name != INDEX_FILE and not name.startswith("."))


def open_index(folder: Path) -> Table | None:
    """The index of all shards; None if there is none yet.

    Raises:
        DocumentError: it is damaged.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        return None
    tensors, metadata = _mapped(file)
    try:
        digests, shards, rows = (tensors[name] for name in ("digests", "shards", "rows"))
        names = tuple(json.loads(metadata["names"]))
    except (KeyError, ValueError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    size = rows.shape[0]
    if digests.shape != (2, size) or shards.shape != (size,):
        raise _damaged(file, f"its parts are of sizes {list(digests.shape)}, {list(shards.shape)} and {size}")
    highs, lows = digests.numpy()
    return Table(names=names, highs=highs, lows=lows, shards=shards.numpy(), rows=rows.numpy())


def as_words(digests: Sequence[bytes]) -> np.ndarray:
    """(2, n) uint64 of digests of 16 bytes; they sort as the bytes do."""
    words = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    return np.ascontiguousarray(words.T.astype(np.uint64))


def shard_digests(file: Path, spec: CacheSpec) -> np.ndarray:
    """(2, n) sorted digests of a shard.

    Raises:
        DocumentError: it is damaged.
    """
    return _Shard.open(file, spec).digests


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects by dotted names, as JSON gives them back."""
    if not prefix:
        value = json.loads(json.dumps(value))
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key in value for name, leaf in _flat(value[key], f"{prefix}{key}.").items()}


def checksum(record: Tensor) -> int:
    """CRC-32 of a record's bytes."""
    return zlib.crc32(record.contiguous().view(torch.uint8).numpy().data)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shard:
    """A memory-mapped shard."""

    records: Tensor
    digests: np.ndarray
    checksums: np.ndarray = field(repr=False)

    @classmethod
    def open(cls, file: Path, spec: CacheSpec) -> "_Shard":
        tensors, _ = _mapped(file)
        try:
            records, digests, checksums = (tensors[name] for name in ("records", "digests", "checksums"))
        except KeyError as error:
            raise _damaged(file, f"it has no {error}") from error
        size = len(records)
        if (
            records.shape[1:] != spec.shape
            or records.dtype is not spec.torch_dtype
            or digests.shape != (2, size)
            or checksums.shape != (size,)
        ):
            raise _damaged(
                file, f"{list(records.shape)} {records.dtype} and {list(digests.shape)} digests do not fit"
            )
        return cls(records=records, digests=digests.numpy(), checksums=checksums.numpy())


def _mapped(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are read from the file where they are touched, and the metadata."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _damaged(file: Path, what: str) -> DocumentError:
    return DocumentError(
        f"{file} is damaged: {what}; expected a whole file of a cache; delete it and run "
        "`dreamllm data cache` again, which computes what is missing"
    )
