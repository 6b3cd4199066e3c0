"""The next-token loss: cross-entropy at the supervised positions, summed.

Hidden states of the supervised positions flow in, one number flows out. The head is applied to a chunk of
positions at a time and its logits are computed again in the backward pass, so that the full (L, V) table,
which at 16 x 2048 positions and 32 thousand words takes four gigabytes, never exists.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states (L, D) to logits (L, V)."""


def cross_entropy_sum(
    logits: Float[Tensor, "L V"], labels: Int[Tensor, " L"], weights: Float[Tensor, " L"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy summed over positions, in float32 whatever the dtype of the logits."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() if weights is None else (losses * weights.float()).sum()


def log_partition_square_sum(
    hidden: Float[Tensor, "L D"], head: Head, *, chunk_size: int = 1024
) -> Float[Tensor, ""]:
    """log(Z)^2 summed over positions, Z the sum of exp(logit): what keeps logits from drifting when words and
    pictures share a head (Chameleon, arXiv:2405.09818, with weight 1e-5)."""

    def chunk_sum(states: Tensor) -> Tensor:
        return head(states).float().logsumexp(dim=-1).square().sum()

    result = torch.zeros((), device=hidden.device)
    for start in range(0, hidden.shape[0], chunk_size):
        result = result + checkpoint(
            chunk_sum, hidden[start : start + chunk_size], use_reentrant=False, preserve_rng_state=False
        )
    return result


def next_token_sum(
    hidden: Float[Tensor, "L D"],
    head: Head,
    labels: Int[Tensor, " L"],
    *,
    weights: Float[Tensor, " L"] | None = None,
    chunk_size: int = 1024,
) -> Float[Tensor, ""]:
    """Cross-entropy of `head(hidden)` against the labels, summed over positions in float32.

    At most `chunk_size` rows of logits exist at a time. No position gives zero, connected to `hidden`.
    """

    def chunk_sum(states: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
        return cross_entropy_sum(head(states), targets, factors)

    size = labels.shape[0]
    if size <= chunk_size:
        return chunk_sum(hidden, labels, weights)
    result = torch.zeros((), device=hidden.device)
    for start in range(0, size, chunk_size):
        rows = slice(start, start + chunk_size)
        factors = None if weights is None else weights[rows]
        result = result + checkpoint(
            chunk_sum, hidden[rows], labels[rows], factors, use_reentrant=False, preserve_rng_state=False
        )
    return result
