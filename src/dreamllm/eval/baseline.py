"""The baseline DreamLLM has to beat: Stable Diffusion, with the same U-Net and VAE and its own text tower.

A caption longer than the tower's context loses its end, as with any CLIP; how many do is reported.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor
from transformers import CLIPTextModel

from dreamllm.errors import CheckpointError
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.runtime.seeding import derive_seed, make_generator
from dreamllm.sequence.captions import CaptionTokens
from dreamllm.sequence.tokenizer import Tokenizer


class Baseline:
    """Draws captions with a stock image decoder."""

    def __init__(self, text_encoder: CLIPTextModel, tokenizer: Tokenizer, decoder: ImageDecoder) -> None:
        self._text_encoder = text_encoder.eval()
        self._decoder = decoder
        self._captions = CaptionTokens(tokenizer, text_encoder.config.max_position_embeddings)

    @classmethod
    def load(cls, path: str | Path, decoder: ImageDecoder) -> "Baseline":
        """Read `text_encoder/` and `tokenizer/` of a folder.

        Raises:
            CheckpointError: a part is missing, or its width is not what the U-Net reads.
        """
        path = Path(path)
        if not (path / "text_encoder" / "config.json").is_file():
            raise CheckpointError(
                f"{path} is no baseline: it has no text_encoder/config.json; expected a folder with "
                "text_encoder/ and tokenizer/, as the tiny Stable Diffusion is exported; check the path"
            )
        text_encoder = CLIPTextModel.from_pretrained(
            str(path / "text_encoder"), local_files_only=True, use_safetensors=True
        )
        width = text_encoder.config.hidden_size
        if width != decoder.condition_width:
            raise CheckpointError(
                f"the text encoder in {path} is {width} wide, but the model's U-Net reads "
                f"{decoder.condition_width}; expected the baseline the U-Net was trained with; "
                "choose that folder"
            )
        text_encoder.to(decoder.denoiser.device)
        return cls(text_encoder, Tokenizer.from_pretrained(path / "tokenizer"), decoder)

    def is_cut(self, text: str) -> bool:
        """Whether the text tower does not get to read all of a caption."""
        return not self._captions.fits(text)

    @torch.no_grad()
    def draw(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        guidance_scale: float,
        num_inference_steps: int,
        batch_size: int,
    ) -> list[PILImage.Image]:
        """One picture a caption; each has noise of its own, whatever it is batched with."""
        pictures: list[PILImage.Image] = []
        unconditional = Condition.of_tokens(self.condition([""]))
        for start in range(0, len(texts), batch_size):
            chunk = texts[start : start + batch_size]
            noise = [make_generator(derive_seed(seed, "baseline", start + i)) for i in range(len(chunk))]
            pixels = self._decoder.sample(
                Condition.of_tokens(self.condition(chunk)),
                unconditional,
                noise=noise,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
            )
            pictures += self._decoder.to_pil(pixels)
        return pictures

    def condition(self, texts: Sequence[str]) -> Float[Tensor, "M K C"]:
        """Text states, padding included, as Stable Diffusion reads them."""
        ids = self._captions(texts).to(self._text_encoder.device)
        return self._text_encoder(input_ids=ids).last_hidden_state
