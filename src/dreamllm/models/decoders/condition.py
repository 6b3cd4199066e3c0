"""What an image decoder is told: one set of vectors a picture, and for some decoders one pooled vector.

The vectors take the place of the states of a text encoder; the pooled one that of its summary, which Stable
Diffusion XL and 3 read beside their time steps. Where a decoder has no use for it, its width G is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Condition:
    """Conditions of M pictures."""

    tokens: Float[Tensor, "M K C"]
    pooled: Float[Tensor, "M G"]

    @classmethod
    def of_tokens(cls, tokens: Float[Tensor, "M K C"]) -> Self:
        """For a decoder that reads no pooled vector."""
        return cls(tokens, tokens.new_zeros(tokens.shape[0], 0))

    @classmethod
    def cat(cls, conditions: Sequence[Self]) -> Self:
        """The conditions of all pictures, in order."""
        return cls(
            torch.cat([condition.tokens for condition in conditions]),
            torch.cat([condition.pooled for condition in conditions]),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.tokens[rows], self.pooled[rows])

    def repeat(self, times: int) -> Self:
        """Each picture's condition `times` in a row."""
        return type(self)(
            self.tokens.repeat_interleave(times, dim=0), self.pooled.repeat_interleave(times, dim=0)
        )

    def expand(self, num_images: int) -> Self:
        """One condition for every picture; a view."""
        return type(self)(self.tokens.expand(num_images, -1, -1), self.pooled.expand(num_images, -1))

    def to(self, dtype: torch.dtype) -> Self:
        """In another type."""
        return type(self)(self.tokens.to(dtype), self.pooled.to(dtype))
