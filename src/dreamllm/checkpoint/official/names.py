"""Names of tensors: those of the official files, and those of the stock classes.

In one file of the official layout a plugin's tensors stand under names of their own. The language model's
file may hold them once more, under the names they have in the whole model; those names are the ones here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from dreamllm.errors import CheckpointError

Parts = dict[str, dict[str, Tensor]]
"""Tensors under stock names, by the part they belong to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """One plugin: its file, and which parts it holds."""

    file: str
    legacy_file: str
    """Of early checkpoints: what was trained, without the frozen parts."""
    prefix: str
    """Before its names in the whole model."""
    parts: Mapping[str, str]
    """What stands before the stock names of a part in the file."""


PLUGINS: Final = (
    Plugin(
        file="clip_vision_embedding.bin",
        legacy_file="clip_vision_model_projector.pt",
        prefix="model.clip_vision_embedding.",
        parts={
            "vision_encoder": "clip_vision_model.vision_model.",
            "visual_projector": "projector.projector.",
        },
    ),
    Plugin(
        file="dream_embedding.bin",
        legacy_file="dream_queries.pt",
        prefix="model.dream_embedding.",
        parts={"dream_queries": "dream_"},
    ),
    Plugin(
        file="stable_diffusion_head.bin",
        legacy_file="unet_projector.pt",
        prefix="stable_diffusion_head.",
        parts={"vae": "vae.", "unet": "unet.", "condition_projector": "projector.projector."},
    ),
)

_LAYER: Final = r"(?:projector\.)*((?:\d\.)?(?:weight|bias))"
_PATTERNS: Final = {
    "language_model": r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..+)",
    "vision_encoder": r"model\.clip_vision_embedding\.clip_vision_model\.(?:vision_model\.)?(.+)",
    "visual_projector": rf"model\.clip_vision_embedding\.{_LAYER}",
    "dream_queries": r"model\.dream_embedding\.dream_(queries)",
    "vae": r"stable_diffusion_head\.vae\.(.+)",
    "unet": r"stable_diffusion_head\.unet\.(.+)",
    "condition_projector": rf"stable_diffusion_head\.{_LAYER}",
}
_COMPUTED: Final = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Buffers that old versions stored and every version computes."""
_ATTENTION: Final = re.compile(
    r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn|to_\w+(?:\.0)?)\.(weight|bias)"
)
_NEW_ATTENTION: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def by_part(tensors: Mapping[str, Tensor], *, prefix: str = "", source: object) -> tuple[Parts, int]:
    """Sort a file's tensors by part, under stock names; and how many computed buffers were left out.

    `prefix` is put before every name; `source` is the file, for messages.

    Raises:
        CheckpointError: a tensor belongs to no part, or two have one name.
    """
    parts: Parts = {}
    num_computed, strangers = 0, []
    for name, tensor in tensors.items():
        if name.endswith(_COMPUTED):
            num_computed += 1
            continue
        part, rest = _part_of(prefix + name)
        match part:
            case "vision_encoder":
                rest = rest.replace("pre_layernorm.", "pre_layrnorm.")  # as the stock class spells it
            case "vae":
                rest, tensor = _modern_attention(rest, tensor)
        if part == "" or rest in parts.setdefault(part, {}):
            strangers.append(name)
        else:
            parts[part][rest] = tensor
    if strangers:
        raise CheckpointError(
            f"{source} holds {len(strangers)} tensors that belong to no part of a DreamLLM, or stand there "
            f"twice: {', '.join(sorted(strangers)[:8])}; expected a checkpoint of a DreamLLM with CLIP and "
            "Stable Diffusion"
        )
    return parts, num_computed


def _part_of(name: str) -> tuple[str, str]:
    """The part that a tensor of the whole model belongs to, and its name there; empty if there is none."""
    for part, pattern in _PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return part, match[1]
    return "", ""


def _modern_attention(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Old autoencoders name their attention differently, and may hold its layers as 1x1 convolutions."""
    match = _ATTENTION.fullmatch(name)
    if match is None:
        return name, tensor
    block, layer, kind = match.groups()
    is_convolution = kind == "weight" and tensor.shape[2:] == (1, 1)
    return f"{block}.{_NEW_ATTENTION.get(layer, layer)}.{kind}", tensor[
        :, :, 0, 0
    ] if is_convolution else tensor
