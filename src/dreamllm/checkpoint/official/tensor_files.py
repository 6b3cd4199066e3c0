"""Files of tensors from strangers: nothing in them is run, and nothing is read before it is used.

Pickled files go through PyTorch's restricted unpickler, which builds tensors and plain containers and calls
nothing else.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dreamllm.checkpoint.parts import read_json
from dreamllm.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin`, `.pt` or `.safetensors` file, mapped from disk; a bare tensor is named for its
    file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds anything but dense numbers under names.
    """
    content = _load(path)
    if isinstance(content, Tensor):
        content = {path.stem: content}
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors; restore the file"
        )
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and _is_plain(value))]
    if odd:
        raise CheckpointError(
            f"{path} holds {len(odd)} entries that are no dense tensors of numbers: {', '.join(odd[:8])}; "
            "expected tensors alone; save the state dictionary and nothing else"
        )
    return {name: tensor.detach() for name, tensor in content.items()}


def find_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the first of these files that is there, whole or as shards with an index.

    Raises:
        CheckpointError: there is none, or one is damaged.
    """
    for name in names:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise CheckpointError(
        f"{folder} holds no tensors; expected {' or '.join(names)}, or shards with {names[-1]}.index.json; "
        "copy the folder whole"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise CheckpointError(
            f"{index} has no weight_map from tensors to files beside it; restore the index from where it came"
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        tensors |= read_tensors(index.parent / name)
    return tensors


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        asks_for = re.search(r"GLOBAL (\S+)", str(error))  # the rest is advice to trust the file
        raise CheckpointError(
            f"{path} holds more than tensors: it asks for {asks_for[1] if asks_for else 'what is unknown'}; "
            "nothing in it was run; ask where it came from for a plain state dictionary"
        ) from error
    except (  # what the restricted unpickler says to damaged bytes
        OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
        SafetensorError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}; "
            "it is damaged or cut short, so restore it from where it came"
        ) from error


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
