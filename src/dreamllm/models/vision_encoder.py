"""The vision encoder: a stock, frozen CLIP vision model seen as a function from pictures to tokens.

DreamLLM (arXiv:2309.11499) reads the hidden states before the last layer, without the class token and
without the final normalisation: 256 vectors of width 1024 from CLIP ViT-L/14 at 224 pixels.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel

from dreamllm.errors import ConfigError


class VisionEncoder(nn.Module):
    """Frozen, and in evaluation mode whatever `train()` says."""

    def __init__(
        self,
        model: CLIPVisionModel,
        *,
        select_layer: int = -2,
        drop_cls: bool = True,
        post_layernorm: bool = False,
    ) -> None:
        """`select_layer` counts hidden states: 0 is the embeddings, -1 or `num_hidden_layers` the last layer.

        Raises:
            ConfigError: there is no such layer, or the final normalisation is asked for on an earlier one.
        """
        super().__init__()
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

    @property
    def num_tokens(self) -> int:
        """P: vectors a picture."""
        config = self.model.config
        return (config.image_size // config.patch_size) ** 2 + (0 if self.drop_cls else 1)

    @property
    def width(self) -> int:
        """E."""
        return self.model.config.hidden_size

    def train(self, mode: bool = True) -> Self:
        """Leave the frozen model in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P E"]:
        """The tokens of each picture; the pixels are normalised as the vision model was trained."""
        pixels = pixels.to(self.model.dtype)
        if pixels.shape[0] == 0:  # the stock model cannot reshape an empty batch
            return pixels.new_zeros(0, self.num_tokens, self.width)
        tokens = self.model(pixels, output_hidden_states=True).hidden_states[self.select_layer]
        if self.post_layernorm:
            tokens = self.model.post_layernorm(tokens)
        return tokens[:, 1:] if self.drop_cls else tokens
