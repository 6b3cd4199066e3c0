"""Choosing the codes of a picture, one position after the other.

Three ways from logits to the next code (JAM, arXiv:2309.15564, decodes as CM3Leon, arXiv:2309.02591, section
3.2): the model's own distribution, classifier-free guidance, and contrastive decoding. The other side of
both is the model after a document whose words are one `<mask>`. Several candidates of a picture may be drawn
side by side, of which the best is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.sampling import row_generator
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.sequence.code_tokens import CodeTokens

UNDRAWN = 127
"""Grey level of what a preview cannot show yet."""


@dataclass(slots=True, kw_only=True, eq=False)
class Picture:
    """The books of a picture under way; every list has an entry a candidate."""

    conditional: list[int]
    """Cache rows that have read the document."""
    unconditional: list[int]
    """Cache rows of the other side; empty if there is none."""
    points: list[list[float]]
    """Where each code is taken from its cumulative distribution."""
    codes: list[list[int]]
    """Drawn so far, from 0 on."""
    log_likelihoods: list[float]
    """Of the codes under the model's own distribution; counted where there are several candidates."""

    @classmethod
    def begin(
        cls,
        conditional: list[int],
        unconditional: list[int],
        *,
        name: str,
        number: int,
        codes_per_picture: int,
        seed: int,
    ) -> "Picture":
        """Nothing is drawn; what will be is a pure function of the seed, the name and the two numbers."""
        points = [
            torch.rand(
                codes_per_picture,
                generator=row_generator(seed, name, "picture", number, candidate),
                dtype=torch.float64,
            ).tolist()
            for candidate in range(len(conditional))
        ]
        return cls(
            conditional=conditional,
            unconditional=unconditional,
            points=points,
            codes=[[] for _ in conditional],
            log_likelihoods=[0.0] * len(conditional),
        )

    @property
    def num_drawn(self) -> int:
        """Codes of each candidate."""
        return len(self.codes[0])

    @property
    def is_complete(self) -> bool:
        """Whether no code is left to be drawn."""
        return self.num_drawn == len(self.points[0])

    @property
    def likeliest(self) -> int:
        """The candidate whose codes the model itself finds likeliest."""
        return self.log_likelihoods.index(max(self.log_likelihoods))


def has_other_side(options: GenerationOptions) -> bool:
    """Whether codes are chosen by comparing the model with itself without the words."""
    return options.guidance_scale != 1 or options.contrastive_k is not None


def code_scores(
    conditional: Float[Tensor, "B K"],
    unconditional: Float[Tensor, "B K"] | None,  # None: no other side
    options: GenerationOptions,
) -> Float[Tensor, "B K"]:
    """Logits that the next codes are sampled from."""
    if unconditional is None:
        return conditional
    if options.contrastive_k is not None:
        return contrast(conditional, unconditional, k=options.contrastive_k, alpha=options.contrastive_alpha)
    return guide(conditional, unconditional, scale=options.guidance_scale)


def guide(
    conditional: Float[Tensor, "B K"], unconditional: Float[Tensor, "B K"], *, scale: float
) -> Float[Tensor, "B K"]:
    """Classifier-free guidance: `unconditional + scale * (conditional - unconditional)` (CM3Leon, section
    3.2)."""
    return torch.lerp(unconditional, conditional, scale)


def contrast(
    conditional: Float[Tensor, "B K"], unconditional: Float[Tensor, "B K"], *, k: int, alpha: float
) -> Float[Tensor, "B K"]:
    """Contrastive decoding CD-K: log p_c - log p_u where p_c is at least alpha times its k-th largest value,
    minus infinity elsewhere (Li et al. 2022, arXiv:2210.15097, with the k-th in place of the largest:
    CM3Leon, section 3.2)."""
    log_c, log_u = conditional.log_softmax(dim=-1), unconditional.log_softmax(dim=-1)
    kth = log_c.topk(min(k, log_c.shape[-1]), dim=-1).values[:, -1:]
    return (log_c - log_u).masked_fill(log_c < kth + math.log(alpha), -torch.inf)


def without_words(ids: Sequence[int], tokens: CodeTokens) -> list[int]:
    """The beginning of a document with one `<mask>` for each run of words; pictures and BOS stay."""
    kept = [ids[0]]
    for token in ids[1:]:
        if token == tokens.break_ or token >= tokens.first_code:
            kept.append(token)
        elif kept[-1] != tokens.mask:
            kept.append(tokens.mask)
    return kept


def decode_pictures(
    tokenizer: ImageTokenizer, codes: Sequence[Sequence[int]], *, batch_size: int
) -> list[PILImage.Image]:
    """Finished pictures, at most `batch_size` at once."""
    device = tokenizer.vq_model.quantize.embedding.weight.device
    return [
        image
        for start in range(0, len(codes), batch_size)
        for image in tokenizer.to_pil(torch.tensor(codes[start : start + batch_size], device=device))
    ]


def preview_pictures(
    tokenizer: ImageTokenizer, codes: Sequence[Sequence[int]], *, batch_size: int
) -> list[PILImage.Image]:
    """Pictures as far as they are drawn, at least one code each; the rest is grey.

    For the decoder the last code stands in for those that are missing, so the seam may still change.
    """
    size, cell = tokenizer.codes_per_picture, tokenizer.picture_px // tokenizer.grid
    filled = [[*drawn, *[drawn[-1]] * (size - len(drawn))] for drawn in codes]
    images = []
    for drawn, image in zip(codes, decode_pictures(tokenizer, filled, batch_size=batch_size), strict=True):
        pixels = np.array(image)
        row, column = divmod(len(drawn), tokenizer.grid)
        pixels[row * cell : (row + 1) * cell, column * cell :] = UNDRAWN
        pixels[(row + 1) * cell :] = UNDRAWN
        images.append(PILImage.fromarray(pixels))
    return images
