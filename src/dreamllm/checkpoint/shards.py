"""Tensors that are spread over ranks, on disk: a folder of torch.distributed.checkpoint.

Every rank writes and reads the part it has, so no rank ever holds the whole; the folder says which part is
where, so it can be read by another number of ranks, or by one process. Names are `part/tensor`.
"""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

Parts = Mapping[str, Mapping[str, Tensor]]
"""Tensors by part (model, optimizer, ...) and by name."""

METADATA = ".metadata"
"""The file that is written last, when the parts of all ranks are on disk."""


def new_group(*, timeout_min: int) -> Any:
    """Ranks that talk of checkpoints in the background, out of the way of training; all must ask for it."""
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_min))


def start_writing(parts: Parts, folder: Path, group: Any) -> "Future[Any]":
    """Copy what is here to the CPU, then write it in the background; all ranks must call it.

    The future is done when all of them have written.
    """
    # Copies of what is on the CPU already, which staging may leave where the next step will change it.
    staged = {
        key: tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach()
        for key, tensor in _flat(parts).items()
    }
    future = dcp.async_save(staged, storage_writer=dcp.FileSystemWriter(folder), process_group=group)
    assert isinstance(future, Future)
    return future


def wait_for(future: "Future[Any]") -> None:
    """Wait until the folder is written.

    Raises:
        OSError: a rank could not write its part; every rank is told.
    """
    try:
        future.result()
    except CheckpointException as error:
        why, _ = error.failures[min(error.failures)]
        raise OSError(getattr(why, "errno", None), " ".join(str(why).split())) from error


def read_shapes(folder: Path) -> dict[str, dict[str, torch.Size]]:
    """What is in a folder."""
    shapes: dict[str, dict[str, torch.Size]] = {}
    for key, entry in _entries(folder).items():
        part, _, name = key.partition("/")
        shapes.setdefault(part, {})[name] = entry.size
    return shapes


def read_whole(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Everything in a folder, in one piece, on the CPU."""
    entries = _entries(folder)
    flat = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in entries.items()}
    _load(flat, folder)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts


def read_parts(folder: Path, targets: Parts) -> None:
    """Fill tensors with what a folder has under their names; of a sharded one, the part that is here."""
    _load(_flat(targets), folder)


def _load(flat: dict[str, Any], folder: Path) -> None:
    """Fill the tensors; each rank reads for itself, which needs no word with the others."""
    with warnings.catch_warnings():  # that nothing is distributed, which is what is asked for
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(flat, storage_reader=dcp.FileSystemReader(folder), no_dist=True)


def _flat(parts: Parts) -> dict[str, Any]:
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    found = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {key: entry for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}
