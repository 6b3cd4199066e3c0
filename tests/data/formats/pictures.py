"""Small picture files for tests of formats."""

import io
from pathlib import Path

import numpy as np
from PIL import Image as PILImage


def jpeg(seed: int = 0) -> bytes:
    """A picture of 8 x 8 pixels, its own for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


def write_jpeg(path: Path, seed: int = 0) -> Path:
    """The same as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(seed))
    return path
