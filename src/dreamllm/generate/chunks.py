"""Embeddings of what a row is fed besides words: prompts, dream slots, and pictures in image slots."""

import torch
from jaxtyping import Float
from torch import Tensor

from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.special_tokens import SpecialTokens


def sequence_chunk(model: DreamLLM, sequence: Sequence) -> Float[Tensor, "T D"]:
    """An encoded prompt, with its pictures and its dream queries in their slots."""
    embeds = _embed(model, sequence.input_ids.tolist())
    images = torch.from_numpy(sequence.slots.image_positions()).to(embeds.device)
    dreams = torch.from_numpy(sequence.slots.dream_positions()).to(embeds.device)
    features = model.image_embeds(sequence.vision_pixels.to(embeds.device).scaled())
    embeds[images] = features.to(embeds.dtype)
    embeds[dreams] = model.query_embeds().to(embeds.dtype).expand(*dreams.shape, -1)
    return embeds


def dream_chunk(model: DreamLLM, special: SpecialTokens) -> Float[Tensor, "T D"]:
    """`<dream_start>`, the dream queries, `<dream_end>`."""
    start, end = _embed(model, [special.dream_start, special.dream_end])
    return torch.cat([start[None], model.query_embeds().to(start.dtype), end[None]])


def image_chunks(
    model: DreamLLM,
    special: SpecialTokens,
    pixels: Float[Tensor, "N 3 H W"],  # normalised for the vision encoder
) -> Float[Tensor, "N T D"]:
    """`<im_start>`, the visual tokens, `<im_end>` of each picture."""
    start, end = _embed(model, [special.im_start, special.im_end])
    features = model.image_embeds(pixels.to(start.device)).to(start.dtype)  # (N, P, D)
    brackets = (len(pixels), 1, -1)
    return torch.cat([start.expand(brackets), features, end.expand(brackets)], dim=1)


def _embed(model: DreamLLM, ids: list[int]) -> Float[Tensor, "T D"]:
    return model.embed_ids(torch.tensor([ids], device=model.device))[0]
