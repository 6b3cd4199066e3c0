"""The vision encoder: a stock, frozen vision transformer seen as a function from pictures to tokens.

DreamLLM (arXiv:2309.11499) reads the hidden states before the last layer of CLIP ViT-L/14, without the class
token and without the final normalisation: 256 vectors of width 1024 from 224 pixels. Other encoders differ in
the few points that `_Family` names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from dreamllm.errors import ConfigError


class VisionEncoder(nn.Module):
    """Frozen, and in evaluation mode whatever `train()` says."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        select_layer: int = -2,
        drop_cls: bool = True,
        post_layernorm: bool = False,
        image_px: int | None = None,
    ) -> None:
        """`select_layer` counts hidden states: 0 is the embeddings, -1 or `num_hidden_layers` the last layer.
        `drop_cls` leaves out the class token and the registers. `image_px` is the side of a picture, by
        default the one the model is configured for.

        Raises:
            ConfigError: the type of the model is not known, there is no such layer, the final normalisation
                is asked for on an earlier one, or the model cannot read pictures of that size.
        """
        super().__init__()
        family = _family(model.config)
        num_layers = model.config.num_hidden_layers
        if not -num_layers - 1 <= select_layer <= num_layers:
            raise ConfigError(
                f"select_layer is {select_layer} but the vision model has {num_layers} layers; choose "
                f"{-num_layers - 1}..{num_layers}, where -1 is the last layer and -2 the paper's choice"
            )
        if post_layernorm and select_layer not in (-1, num_layers):
            raise ConfigError(
                f"post_layernorm belongs to the last layer but select_layer is {select_layer}; "
                "use select_layer=-1 with it, or turn it off"
            )
        self.model = model.eval().requires_grad_(False)
        self.select_layer = select_layer
        self.drop_cls = drop_cls
        self.post_layernorm = post_layernorm
        self.patch_px = _side(model.config, "patch_size")
        """Side of a patch."""
        self.image_px = _image_px(model.config, family, image_px)
        """Side of the square pictures that are read."""
        self._family = family

    @property
    def num_tokens(self) -> int:
        """P: vectors a picture."""
        return (self.image_px // self.patch_px) ** 2 + (0 if self.drop_cls else self._num_prefix_tokens)

    @property
    def width(self) -> int:
        """E."""
        return self.model.config.hidden_size

    def train(self, mode: bool = True) -> Self:
        """Leave the frozen model in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P E"]:
        """The tokens of each picture, in rows from its top left; the pixels are normalised as the vision
        model was trained."""
        pixels = pixels.to(self.model.dtype)
        if pixels.shape[0] == 0:  # the stock models cannot reshape an empty batch
            return pixels.new_zeros(0, self.num_tokens, self.width)
        inputs = self._family.inputs(pixels, self.patch_px)
        # The list asks for this one state alone; the others are not kept.
        states = self.model(**inputs, output_hidden_states=[self.select_layer]).hidden_states
        tokens = states[self.select_layer]
        if self.post_layernorm:
            tokens = self.model.get_submodule(self._family.final_norm)(tokens)
        return tokens[:, self._num_prefix_tokens :] if self.drop_cls else tokens

    @property
    def _num_prefix_tokens(self) -> int:
        """The class token and the registers, which stand before the patches."""
        return int(self._family.has_class_token) + getattr(self.model.config, "num_register_tokens", 0)


def recommended_tokens(model_config: PreTrainedConfig) -> tuple[int, bool]:
    """`(select_layer, post_layernorm)`: the deepest tokens of the patches that training has shaped.

    CLIP's loss sees its last layer at the class token alone, which leaves the patches there untrained: the
    layer before, not normalised (DreamLLM; LLaVA, arXiv:2304.08485). SigLIP pools over the normalised patches
    of its last layer, so these carry what its loss asked for (PaliGemma, arXiv:2407.07726). DINO trains the
    same tokens patch by patch, and its dense results are read from them (DINOv2, arXiv:2304.07193).

    Raises:
        ConfigError: the type of the model is not known.
    """
    return _family(model_config).recommended


def _as_pixels(pixels: Float[Tensor, "N 3 H W"], patch_px: int) -> dict[str, Any]:
    return {"pixel_values": pixels}


def _as_patches(pixels: Float[Tensor, "N 3 H W"], patch_px: int) -> dict[str, Any]:
    """Patches in rows from the top left, channels last in each, as SigLIP 2 NaFlex takes them."""
    num_images, _, height, width = pixels.shape
    rows, columns = height // patch_px, width // patch_px
    patches = pixels.reshape(num_images, 3, rows, patch_px, columns, patch_px).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.reshape(num_images, rows * columns, -1),
        "pixel_attention_mask": None,  # no patch is padding
        "spatial_shapes": torch.tensor([[rows, columns]] * num_images, device="cpu"),  # read as numbers
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """What differs between the stock classes."""

    model_class: type[PreTrainedModel]
    final_norm: str
    """Name of the module that normalises the last layer."""
    has_class_token: bool
    recommended: tuple[int, bool] = (-1, True)
    """See `recommended_tokens`."""
    takes_any_size: bool = False
    """Positions are interpolated or computed, so pictures may have another size than the configured one."""
    inputs: Callable[[Tensor, int], dict[str, Any]] = _as_pixels
    """Pixels and the side of a patch -> what the stock forward takes."""


_FAMILIES: Final[Mapping[str, _Family]] = {
    "clip_vision_model": _Family(
        model_class=CLIPVisionModel,
        final_norm="post_layernorm",
        has_class_token=True,
        recommended=(-2, False),
    ),
    # also SigLIP 2 of a fixed size
    "siglip_vision_model": _Family(
        model_class=SiglipVisionModel, final_norm="post_layernorm", has_class_token=False
    ),
    # SigLIP 2 NaFlex
    "siglip2_vision_model": _Family(
        model_class=Siglip2VisionModel,
        final_norm="post_layernorm",
        has_class_token=False,
        takes_any_size=True,
        inputs=_as_patches,
    ),
    "dinov2": _Family(
        model_class=Dinov2Model, final_norm="layernorm", has_class_token=True, takes_any_size=True
    ),
    "dinov2_with_registers": _Family(
        model_class=Dinov2WithRegistersModel,
        final_norm="layernorm",
        has_class_token=True,
        takes_any_size=True,
    ),
    "dinov3_vit": _Family(
        model_class=DINOv3ViTModel, final_norm="norm", has_class_token=True, takes_any_size=True
    ),
}

VISION_CLASSES: Final[Mapping[str, type[PreTrainedModel]]] = {
    "clip": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip2": Siglip2VisionModel,
} | {model_type: family.model_class for model_type, family in _FAMILIES.items()}
"""From the `model_type` of a folder, be it a vision model or a whole two-tower model, to the stock class
whose `from_pretrained` takes the vision model from it."""


def _family(config: PreTrainedConfig) -> _Family:
    if config.model_type not in _FAMILIES:
        raise ConfigError(
            f"a model of type {config.model_type!r} is no vision encoder known here; "
            f"choose one of {', '.join(_FAMILIES)} (of a two-tower model, the vision half)"
        )
    return _FAMILIES[config.model_type]


def _image_px(config: PreTrainedConfig, family: _Family, wanted: int | None) -> int:
    """Side of a picture: the one wanted if the model can read it, else the configured one."""
    patch_px = _side(config, "patch_size")
    if hasattr(config, "image_size"):
        configured = _side(config, "image_size")
    else:  # NaFlex knows a number of patches, which lie in a square
        configured = math.isqrt(config.num_patches) * patch_px
    if wanted is None or wanted == configured:
        return configured
    if not family.takes_any_size:
        raise ConfigError(
            f"image_px is {wanted} but this {config.model_type} reads pictures of {configured} pixels alone; "
            "leave image_px out"
        )
    if wanted < patch_px or wanted % patch_px:
        raise ConfigError(
            f"image_px is {wanted}, expected a multiple of the patch size {patch_px}; "
            f"use {max(wanted // patch_px, 1) * patch_px}, or leave it out for {configured}"
        )
    return wanted


def _side(config: PreTrainedConfig, name: str) -> int:
    """A side in pixels; transformers also writes it as a pair."""
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ConfigError(
            f"{name} of the {config.model_type} is {value}, but only squares are read; "
            "choose a vision model made for square pictures"
        )
    return int(sides.pop())
