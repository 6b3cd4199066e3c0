"""Stock parts around tensors that are there already: nothing is initialised, copied or unaccounted for."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from dreamllm.checkpoint.parts import damaged, raise_for_tensors
from dreamllm.errors import CheckpointError


def transformers_part(part_class: Any, config: Any, *, tensors: Mapping[str, Tensor], source: Path) -> Any:
    """A model of transformers; `source` is the file of the tensors, for messages.

    Raises:
        CheckpointError: a tensor is missing, left over, of the wrong shape, or holds no numbers with a point.
    """
    checked = _checked(_skeleton(part_class, config, source=source), tensors, source=source)
    dtype = next(iter(checked.values())).dtype  # named, because "auto" believes the configuration
    return part_class.from_pretrained(None, config=config, state_dict=checked, dtype=dtype)


def diffusers_part(part_class: Any, config: Any, *, tensors: Mapping[str, Tensor], source: Path) -> Any:
    """A model of diffusers; as above."""
    part = _skeleton(part_class.from_config, config, source=source)
    fill(part, tensors, source=source)
    return part


def fill(part: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Give a part its tensors in place of its own; as above."""
    part.load_state_dict(_checked(part, tensors, source=source), assign=True)


def _skeleton(make: Any, config: Any, *, source: Path) -> Any:
    """The part without memory for its tensors."""
    try:
        with torch.device("meta"):
            return make(config)
    except (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise damaged(source, error) from error


def _checked(part: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> dict[str, Tensor]:
    """The tensors, known to be those of the part; if they are of several types, in one that holds them all
    exactly."""
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
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
