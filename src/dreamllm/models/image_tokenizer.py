"""Pictures as codes and back, by a stock `VQModel` of diffusers (VQGAN, arXiv:2012.09841; the image tokenizer
of JAM, arXiv:2309.15564, follows Make-A-Scene, arXiv:2203.13131).

Pixels flow in and G codes come out, in raster order; codes flow in and pixels come out. It is frozen wherever
a language model learns.
"""

import numpy as np
import torch
from diffusers import VQModel
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor, nn

from dreamllm.errors import ConfigError


class ImageTokenizer(nn.Module):
    """A vector-quantised autoencoder as a tokenizer of pictures."""

    def __init__(self, vq_model: VQModel) -> None:
        """Raises ConfigError for a codebook that holds numbers which are not finite."""
        super().__init__()
        codebook = vq_model.quantize.embedding.weight
        # On the meta device there is nothing to look at.
        if not codebook.is_meta and not bool(torch.isfinite(codebook).all()):
            raise ConfigError(
                f"the codebook of the image tokenizer ({codebook.shape[0]} codes of {codebook.shape[1]} "
                "numbers) holds values that are not finite; expected finite numbers; the file is damaged, so "
                "train it or download it again"
            )
        self.vq_model = vq_model.requires_grad_(False).eval()
        self.picture_px: int = vq_model.config.sample_size
        """H and W of the pictures."""
        factor = 2 ** (len(vq_model.config.block_out_channels) - 1)
        if self.picture_px % factor:
            raise ConfigError(
                f"the image tokenizer is made for pictures of {self.picture_px} px, which its factor "
                f"{factor} does not divide; set sample_size to a multiple of it"
            )
        self.grid: int = self.picture_px // factor
        """Rows, and columns, of codes."""

    @property
    def num_codes(self) -> int:
        """Rows of the codebook."""
        return int(self.vq_model.config.num_vq_embeddings)

    @property
    def codes_per_picture(self) -> int:
        """G: codes of one picture."""
        return self.grid**2

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "M 3 H W"]) -> Int[Tensor, "M G"]:
        """Codes of pictures in [-1, 1], row by row from the top left."""
        latents = self.vq_model.encode(pixels.to(self.vq_model.dtype)).latents
        _, _, (_, _, codes) = self.vq_model.quantize(latents)
        return codes.reshape(len(pixels), self.codes_per_picture)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M G"]) -> Float[Tensor, "M 3 H W"]:
        """Pictures in [-1, 1]."""
        vectors = self.vq_model.quantize.embedding(codes)  # (M, G, Z)
        grid = vectors.transpose(1, 2).reshape(len(codes), -1, self.grid, self.grid)
        return self.vq_model.decode(grid, force_not_quantize=True).sample.clamp(-1, 1)

    def to_pil(self, codes: Int[Tensor, "M G"]) -> list[PILImage.Image]:
        """The pictures that codes stand for."""
        values = ((self.decode(codes).float() + 1) * 127.5).round().to(torch.uint8)
        return [PILImage.fromarray(np.ascontiguousarray(v)) for v in values.permute(0, 2, 3, 1).cpu().numpy()]
