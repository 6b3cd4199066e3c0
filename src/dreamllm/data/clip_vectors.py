"""Vectors of a stock CLIPModel for retrieval, frozen, as RA-CM3 (arXiv:2211.12561) takes them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from dreamllm.data.transforms import VisionTransform
from dreamllm.errors import CheckpointError

_BATCH = 64


class ClipDocumentVectors:
    """Projected vectors of texts and pictures. What is beyond the context of the text tower is not read."""

    def __init__(self, path: str | Path, *, tokenizer: str | Path | None = None, device: str = "cpu") -> None:
        """Read a folder of a CLIPModel with `preprocessor_config.json`, and a tokenizer there or elsewhere.

        Raises:
            CheckpointError: a file is missing or is not what it should be.
            ConfigError: the preprocessor does what is not offered here.
        """
        folder = Path(path)
        preprocessor = folder / "preprocessor_config.json"
        if not (folder / "config.json").is_file() or not preprocessor.is_file():
            raise CheckpointError(
                f"{folder} is not a CLIP to retrieve with; expected config.json, weights and "
                "preprocessor_config.json of a CLIPModel in it; correct the path"
            )
        try:
            self._model: CLIPModel = CLIPModel.from_pretrained(folder).eval().requires_grad_(False).to(device)
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer or folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} cannot be read as a CLIP with its tokenizer: {str(error).splitlines()[0]}; "
                f"expected a CLIPModel there and a fast tokenizer in {tokenizer or folder}; correct the paths"
            ) from error
        self._transform = VisionTransform.from_preprocessor(
            json.loads(preprocessor.read_text(encoding="utf-8")),
            image_px=self._model.config.vision_config.image_size,
        )
        self._device = torch.device(device)

    @property
    def name(self) -> str:
        """A digest of the projections, which no two trained CLIPs share."""
        digest = hashlib.sha256()
        for layer in (self._model.text_projection, self._model.visual_projection):
            digest.update(layer.weight.float().cpu().numpy().tobytes())
        return f"clip {digest.hexdigest()[:16]}"

    @torch.no_grad()
    def text(self, texts: list[str]) -> Float[np.ndarray, "n w"]:
        """Projected vectors; each text is read after a space, between BOS and EOS, and cut to the context."""
        rows = [self._ids(text) for text in texts]
        vectors = []
        for start in range(0, len(rows), _BATCH):
            ids = _padded(rows[start : start + _BATCH], self._tokenizer.eos_token_id).to(self._device)
            read = self._model.text_model(input_ids=ids)
            vectors.append(self._model.text_projection(read.pooler_output).float().cpu())
        return torch.cat(vectors).numpy()

    def _ids(self, text: str) -> list[int]:
        length = self._model.config.text_config.max_position_embeddings
        words: list[int] = self._tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return [self._tokenizer.bos_token_id, *words[: length - 2], self._tokenizer.eos_token_id]

    @torch.no_grad()
    def images(self, images: list[PILImage.Image]) -> Float[np.ndarray, "n w"]:
        """Projected vectors."""
        vectors = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([self._transform(image) for image in images[start : start + _BATCH]])
            seen = self._model.vision_model(pixel_values=torch.from_numpy(pixels).to(self._device))
            vectors.append(self._model.visual_projection(seen.pooler_output).float().cpu())
        return torch.cat(vectors).numpy()


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    """More EOS after the first one, which stands for the text: the tower is causal."""
    length = max(map(len, rows))
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])
