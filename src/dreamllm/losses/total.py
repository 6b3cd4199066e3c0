"""The sum of all loss terms of an optimizer step.

A model returns each term as a sum with its count, never as a mean. The trainer adds the counts of every
micro-batch on every rank and divides by that one number, so that each supervised token and each drawn
picture weighs the same wherever it was processed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.errors import TrainingError

DREAMLLM_WEIGHTS: Final[Mapping[str, float]] = MappingProxyType({"next_token": 1.0, "denoising": 10.0})
"""Stages II and III of DreamLLM (arXiv:2309.11499); the numbers stand in its released configuration."""


@dataclass(frozen=True, slots=True)
class Term:
    """One loss term of one micro-batch, summed and not yet divided."""

    sum: Float[Tensor, ""]
    count: int
    """Items summed: supervised tokens, or pictures."""
    by_document: Float[Tensor, "2 S"] | None = None
    """Sum and count of every document of the micro-batch, without a gradient; None where that is not told."""

    @classmethod
    def of_items(
        cls, losses: Float[Tensor, " n"], documents: Int[Tensor, " n"], *, num_documents: int
    ) -> Self:
        """The term of items of which each belongs to a document, of which there are S."""
        apart = torch.stack([losses.detach().float(), torch.ones_like(losses, dtype=torch.float32)])
        table = torch.zeros(2, num_documents, device=losses.device).index_add_(1, documents, apart)
        return cls(losses.sum(), len(losses), table)


def total(
    terms: Mapping[str, Term], *, counts: Mapping[str, int], weights: Mapping[str, float]
) -> Float[Tensor, ""]:
    """The sum over terms of weight * sum / count.

    `counts` are those of the whole optimizer step: all micro-batches on all ranks. A term whose count there
    is zero contributes nothing; when no term is left the result is a constant zero, without a gradient.

    Raises:
        TrainingError: a term has no count or no weight, or the step counts fewer items than this micro-batch.
    """
    result = torch.zeros(())
    for name, term in terms.items():
        if name not in counts or name not in weights:
            raise TrainingError(
                f"loss term {name!r} has no count or no weight: counts are given for {sorted(counts)}, "
                f"weights for {sorted(weights)}; give both for every term the model returns"
            )
        if counts[name] < term.count:
            raise TrainingError(
                f"loss term {name!r} counts {counts[name]} items in the whole step but {term.count} in one "
                "micro-batch; sum the counts over all micro-batches and ranks before calling total"
            )
        if counts[name] > 0 and weights[name] != 0:
            result = result.to(term.sum.device) + weights[name] / counts[name] * term.sum
    return result
