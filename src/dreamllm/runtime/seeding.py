"""Seeds as pure functions of names and numbers.

Training stores no generator state: what is random in a step follows from (seed, step, micro-batch) alone, so
a resumed run draws what the uninterrupted run would have drawn. Torch loads late, so that recipes, which
derive seeds, are read and checked without it.
"""

import hashlib
import json
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from every part and its place, the same on every machine and in every process."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries still draw from the legacy generator)
    torch.manual_seed(seed)


def make_generator(seed: int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A generator of its own on a device."""
    import torch

    return torch.Generator(device).manual_seed(seed)
