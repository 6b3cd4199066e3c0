"""Stock parts around tensors that are already there: nothing is initialised, copied or left unaccounted for."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from dreamllm.checkpoint.parts import damaged, raise_for_tensors
from dreamllm.errors import CheckpointError


def transformers_part(part_class: Any, config: Any, tensors: Mapping[str, Tensor], *, source: Path) -> Any:
    """A model of transformers; `source` is the file of the tensors, for messages.

    Raises:
        CheckpointError: a tensor is missing, left over, of the wrong shape, or no number with a point.
    """
    dtype = _checked(source, tensors, _skeleton(part_class, config, source))
    return part_class.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype)


def diffusers_part(part_class: Any, config: Any, tensors: Mapping[str, Tensor], *, source: Path) -> Any:
    """A model of diffusers; as above."""
    part = _skeleton(part_class.from_config, config, source)
    dtype = _checked(source, tensors, part)
    part.load_state_dict(dict(tensors), assign=True)
    return part.to(dtype)


def fill(connector: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Give a connector its tensors; as above."""
    dtype = _checked(source, tensors, connector)
    connector.load_state_dict(dict(tensors), assign=True)
    connector.to(dtype)


def _skeleton(make: Any, config: Any, source: Path) -> Any:
    try:
        with torch.device("meta"):
            return make(config)
    except (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise damaged(source, error) from error


def _checked(source: Path, tensors: Mapping[str, Tensor], part: nn.Module) -> torch.dtype:
    """The one type that holds all tensors exactly, once they are known to be those of the part."""
    expected = part.state_dict()
    common = sorted(expected.keys() & tensors.keys())
    raise_for_tensors(
        source,
        missing=sorted(expected.keys() - tensors.keys()),
        left_over=sorted(tensors.keys() - expected.keys()),
        misshapen=[
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in common
            if tensors[name].shape != expected[name].shape
        ],
    )
    odd = [f"{name} {tensors[name].dtype}" for name in common if not tensors[name].is_floating_point()]
    if odd:
        raise CheckpointError(
            f"{source} holds {len(odd)} tensors that are no floating-point numbers: {', '.join(odd[:8])}; "
            "quantised checkpoints are not read, so give the original one"
        )
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
