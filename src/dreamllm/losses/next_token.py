"""The next-token loss: cross-entropy at the supervised positions, one number a position.

The head is applied to a chunk of positions at a time and its logits are computed again in the backward pass,
so that the full (L, V) table, which at 16 x 2048 positions and 32 thousand words takes four gigabytes, never
exists.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states (L, D) to logits (L, V)."""

CHUNK_SIZE = 1024


def next_token_losses(
    hidden: Float[Tensor, "L D"], head: Head, labels: Int[Tensor, " L"], *, chunk_size: int = CHUNK_SIZE
) -> Float[Tensor, " L"]:
    """Cross-entropy of `head(hidden)` against the labels, in float32 whatever the dtype of the logits.

    At most `chunk_size` rows of logits exist at a time. No position gives no number, connected to `hidden`.
    """

    def of_chunk(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none")

    return _by_chunks(of_chunk, hidden, labels, chunk_size=chunk_size)


def log_partition_squares(
    hidden: Float[Tensor, "L D"], head: Head, *, chunk_size: int = CHUNK_SIZE
) -> Float[Tensor, " L"]:
    """log(Z)^2 of each position, Z the sum of exp(logit): what keeps logits from drifting when words and
    pictures share a head (Chameleon, arXiv:2405.09818, with weight 1e-5)."""

    def of_chunk(states: Tensor) -> Tensor:
        return head(states).float().logsumexp(dim=-1).square()

    return _by_chunks(of_chunk, hidden, chunk_size=chunk_size)


def _by_chunks(function: Callable[..., Tensor], *tensors: Tensor, chunk_size: int) -> Tensor:
    """The function on all rows; where there are more than a chunk, by chunks that keep nothing for the
    backward pass but what goes in."""
    if len(tensors[0]) <= chunk_size:
        return function(*tensors)
    chunks = zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
    return torch.cat(
        [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )
