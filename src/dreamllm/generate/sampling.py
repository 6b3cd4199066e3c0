"""From logits to the next token of every row.

Temperature and nucleus filtering are the stock `transformers` processors. Randomness belongs to the row: each
row draws one uniform number from its own generator and takes the token at that point of the cumulative
distribution, so a row's text does not depend on its neighbours in the batch.
"""

import hashlib

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper


def row_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that is a pure function of the seed and the names, equal in every process."""
    text = "\x1f".join(str(name) for name in (seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits safely


def next_tokens(
    logits: Float[Tensor, "B V"],
    is_allowed: Bool[Tensor, "B V"],
    generators: list[torch.Generator],
    *,
    temperature: float,
    top_p: float,
) -> Int[Tensor, " B"]:
    """One allowed token a row: the likeliest at temperature 0, else a sample of the nucleus.

    `top_p` keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2019,
    arXiv:1904.09751, section 3.1).
    """
    scores = logits.float().masked_fill(~is_allowed, -torch.inf)
    if temperature == 0.0:
        return pick(scores, None, temperature=0.0, top_p=top_p)
    points = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    return pick(scores, points, temperature=temperature, top_p=top_p)


def pick(
    scores: Float[Tensor, "B V"],
    points: Float[Tensor, " B"] | None,  # float64, [0, 1), on the CPU
    *,
    temperature: float,
    top_p: float,
) -> Int[Tensor, " B"]:
    """The token of each row at a point of its nucleus; at temperature 0 the likeliest, and no point is used.

    Scores are logits, minus infinity where a token is forbidden.
    """
    if temperature == 0.0:
        return scores.argmax(dim=-1)
    assert points is not None, "a temperature asks for points"
    probabilities = nucleus(scores, temperature=temperature, top_p=top_p).double()
    return sample_at(probabilities, points.to(scores.device))


def nucleus(scores: Float[Tensor, "B V"], *, temperature: float, top_p: float) -> Float[Tensor, "B V"]:
    """Probabilities after temperature and nucleus filtering; forbidden scores are minus infinity."""
    if temperature != 1.0:
        scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(dim=-1)


def sample_at(
    probabilities: Float[Tensor, "B V"],
    points: Float[Tensor, " B"],  # [0, 1)
) -> Int[Tensor, " B"]:
    """The token of each row at a point of its cumulative distribution; never one of probability zero."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1]
    # Rounding must not carry a point just below 1 to the total, where only impossible tokens are left.
    targets = torch.minimum(points * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
