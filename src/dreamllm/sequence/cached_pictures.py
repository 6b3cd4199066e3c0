"""What a cache knows of some pictures, beside the pixels of the others.

A sequence or a batch has N pictures in reading order. Those that a cache knows stand here as records:
features of a vision encoder, moments of a VAE. The others are computed from pixels; `fill` puts all in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.errors import LayoutError


@dataclass(frozen=True, slots=True, eq=False)
class CachedPictures:
    """Records of some pictures, and which ones."""

    records: Float[Tensor, "Nc ..."]
    """In the type in which they are stored."""
    rows: Int[Tensor, " Nc"]
    """Their pictures' numbers, in rising order."""
    pixel_rows: Int[Tensor, " Np"]
    """Numbers of the other pictures."""

    @classmethod
    def of(cls, known: Mapping[int, Tensor], num_pictures: int, *, nothing: Tensor) -> Self:
        """Copies of records, by the number of their picture; `nothing` is 0 of their shape and type."""
        rows = sorted(known)
        others = [number for number in range(num_pictures) if number not in known]
        return cls(
            torch.stack([known[row] for row in rows]) if rows else nothing,
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor(others, dtype=torch.int64),
        )

    @classmethod
    def cat(cls, parts: Sequence[tuple[Self | None, int]]) -> Self | None:
        """Those of several sequences, each with its number of pictures; None if none has a cache.

        Raises:
            LayoutError: records of different shapes or types.
        """
        cached = [part for part, _ in parts if part is not None]
        if not cached:
            return None
        kinds = {(tuple(part.records.shape[1:]), part.records.dtype) for part in cached}
        if len(kinds) > 1:
            raise LayoutError(
                f"cached pictures of {len(kinds)} kinds cannot share a batch: shapes and types are {kinds}; "
                "expected one kind; encode all documents with the same caches"
            )
        rows, pixel_rows, before = [], [], 0
        for part, num_pictures in parts:
            if part is None:
                pixel_rows.append(torch.arange(before, before + num_pictures))
            else:
                rows.append(before + part.rows)
                pixel_rows.append(before + part.pixel_rows)
            before += num_pictures
        return cls(torch.cat([part.records for part in cached]), torch.cat(rows), torch.cat(pixel_rows))

    def __len__(self) -> int:
        return self.rows.shape[0]

    def fill(self, computed: Float[Tensor, "Np ..."]) -> Float[Tensor, "N ..."]:
        """All pictures in order, in the type of what was computed for those that no cache knows.

        Raises:
            LayoutError: what was computed has another shape than the records, or is of another number.
        """
        if computed.shape[1:] != self.records.shape[1:] or len(computed) != len(self.pixel_rows):
            raise LayoutError(
                f"computed {tuple(computed.shape)} beside cached {tuple(self.records.shape)}; expected "
                f"{len(self.pixel_rows)} of the cached shape; use the caches of this model"
            )
        filled = computed.new_empty(len(self.rows) + len(computed), *computed.shape[1:])
        filled.index_copy_(0, self.rows, self.records.to(computed.dtype))
        return filled.index_copy_(0, self.pixel_rows, computed)
