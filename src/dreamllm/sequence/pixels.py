"""Pixels of some pictures on their way to a device: a byte a value, and the scaling to what a model reads.

Decoding gives bytes and models read floats of four times that size. The scaling waits until a batch is where
it is used, so what is copied between rows, processes and devices is bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dreamllm.data.transforms import Scaling


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Pictures of one size."""

    levels: Shaped[Tensor, "N 3 H W"]
    """uint8, or float32 of a transform that does not round; in [0, 255] where there is a scaling."""
    scaling: Scaling | None = None
    """To what a model reads; None: the levels are that already."""

    @classmethod
    def of(cls, levels: Sequence[np.ndarray], *, image_px: int, scaling: Scaling | None = None) -> Self:
        """Views (3, H, W) of pictures; without any, none of `image_px` squared."""
        if not levels:
            return cls(torch.empty(0, 3, image_px, image_px, dtype=torch.uint8), scaling)
        return cls(torch.from_numpy(np.stack(levels)), scaling)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Those of several sequences, all of one `kind`; at least one."""
        seen = [part.levels for part in parts if len(part)] or [parts[0].levels]
        return cls(torch.cat(seen), parts[0].scaling)

    @property
    def kind(self) -> tuple[tuple[int, ...], Scaling | None]:
        """What must be equal in a batch: shape of a picture, and scaling."""
        return tuple(self.levels.shape[1:]), self.scaling

    def __len__(self) -> int:
        return self.levels.shape[0]

    def scaled(self) -> Float[Tensor, "N 3 H W"]:
        """What a model reads, float32."""
        return self.levels.to(torch.float32) if self.scaling is None else self.scaling(self.levels)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(self.levels.to(device, non_blocking=True), self.scaling)
