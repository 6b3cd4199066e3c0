"""Pictures of the world as tensors, and sheets of them for people."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

GAP_PX = 2
MAX_SHEET_PX = 1200


def to_pixels(pictures: UInt8[np.ndarray, "n H W 3"]) -> Float[Tensor, "n 3 H W"]:
    """Pictures as float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_grid(rows: Sequence[UInt8[np.ndarray, "n H W 3"]], path: Path, name: str = "pictures.png") -> None:
    """Write rows of pictures into one PNG in a folder, enlarged by a whole factor where there is room."""
    padded = [np.pad(row, ((0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=90) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)
    factor = max(1, MAX_SHEET_PX // sheet.shape[1])
    picture = PILImage.fromarray(sheet)
    picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.NEAREST).save(
        path / name
    )
