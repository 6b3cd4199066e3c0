"""Pictures of the world to be reproduced: how an error counts, and what the judge still reads off the result.

Shared by the autoencoders, continuous (`vae.py`) and of codes (`image_tokenizer.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dreamllm.train.objectives.pictures import to_pixels
from dreamllm.world.judge import Judge
from dreamllm.world.render import foreground, render
from dreamllm.world.scene import PICTURE_PX, Scene
from dreamllm.world.splits import sample_scene

ATTRIBUTES = ("shape", "color", "size")


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Pictures and where their objects are."""

    pixels: Tensor
    """(B, 3, H, W) float32, [-1, 1]."""
    is_foreground: Tensor
    """(B, 1, H, W) bool."""

    @classmethod
    def of(cls, scenes: Sequence[Scene], picture_px: int = PICTURE_PX) -> "PictureBatch":
        """Scenes rendered, and brought to another size if asked."""
        pixels = to_pixels(np.stack([render(scene) for scene in scenes]))
        mask = torch.from_numpy(np.stack([foreground(scene) for scene in scenes]))[:, None]
        if picture_px != PICTURE_PX:
            pixels = resized(pixels, picture_px)
            mask = F.interpolate(mask.float(), size=picture_px, mode="area") > 0.5
        return cls(pixels, mask)


def resized(pixels: Float[Tensor, "B 3 H W"], picture_px: int) -> Float[Tensor, "B 3 h w"]:
    """Pictures at another size, as `TargetTransform` makes them."""
    return F.interpolate(pixels, size=picture_px, mode="bilinear", antialias=True, align_corners=False)


def opponent(error: Float[Tensor, "B 3 H W"], chroma_weight: float) -> Float[Tensor, "B 3 H W"]:
    """Errors of red, green and blue as errors of brightness and two hues, hues scaled.

    The axes are orthonormal: with `chroma_weight` 1 the squared error of a pixel is that of its RGB.
    """
    red, green, blue = error.unbind(1)
    brightness = (red + green + blue) / 3**0.5
    red_green = (red - green) / 2**0.5
    blue_yellow = (2 * blue - red - green) / 6**0.5
    return torch.stack([brightness, chroma_weight * red_green, chroma_weight * blue_yellow], dim=1)


def reconstruction_error(
    decoded: Float[Tensor, "B 3 H W"],
    pixels: Float[Tensor, "B 3 H W"],
    is_foreground: Bool[Tensor, "B 1 H W"],
    *,
    foreground_weight: float,
    chroma_weight: float,
) -> Float[Tensor, " B"]:
    """Mean L1 + L2 a pixel of each picture; pixels on objects, and errors of hue, weigh more."""
    error = opponent(decoded - pixels, chroma_weight)
    weight = 1 + (foreground_weight - 1) * is_foreground
    return ((error.abs() + error.square()) * weight).flatten(1).mean(1)


def gate_scenes(num_scenes: int) -> list[Scene]:
    """Test scenes, every other one with a pair of shape and colour that was never trained."""
    rng = np.random.default_rng(17)
    return [sample_scene(rng, "test" if i % 2 else "held_out") for i in range(num_scenes)]


def attribute_mean(metrics: Mapping[str, float]) -> float:
    """Mean over attributes of what `read_back` found."""
    return sum(metrics[name] for name in ATTRIBUTES) / len(ATTRIBUTES)


def read_back(scenes: Sequence[Scene], pictures: np.ndarray) -> dict[str, float]:
    """Shares of attributes, of whole objects and of whole scenes that the judge reads right."""
    readings = Judge().read_many(list(pictures))
    objects = scenes_right = 0
    by_attribute = dict.fromkeys(ATTRIBUTES, 0)
    total = sum(len(scene.objects) for scene in scenes)
    for scene, reading in zip(scenes, readings, strict=True):
        scenes_right += reading.scene == scene
        cells = {cell.place: cell for cell in reading.cells}
        for thing in scene.objects:
            same = {name: getattr(cells[thing.place], name) == getattr(thing, name) for name in ATTRIBUTES}
            objects += all(same.values())
            for name, is_same in same.items():
                by_attribute[name] += is_same
    metrics = {name: value / total for name, value in by_attribute.items()}
    return metrics | {"object": objects / total, "scene": scenes_right / len(scenes)}
