"""Pictures to arrays: one view for the vision encoder, one for the image decoder (DreamLLM, section 3.2).

Both views show the same part of a picture: the shortest side is brought to size and the centre is cut out.
There is no random flip, which would make "left" and "right" wrong and mirror rendered text.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from PIL import Image as PILImage

from dreamllm.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class VisionTransform:
    """View for the vision encoder: bicubic, normalised per channel; defaults are those of OpenAI CLIP."""

    image_px: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        _check_size(self.image_px)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"mean={self.mean} and std={self.std} cannot normalise RGB; "
                "expected three values each, std above 0; check the preprocessor of the vision encoder"
            )

    def __call__(self, image: PILImage.Image) -> Float[np.ndarray, "3 H W"]:
        """Pixels of an RGB picture, float32."""
        pixels = _square(image, self.image_px, PILImage.Resampling.BICUBIC) / np.float32(255)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `from_dict` is its inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The transform that `to_dict` wrote; unknown keys raise ConfigError."""
        _check_keys(cls, value)
        known: dict[str, Any] = {key: tuple(v) if key in ("mean", "std") else v for key, v in value.items()}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class TargetTransform:
    """View for the image decoder: bilinear, [-1, 1]."""

    image_px: int

    def __post_init__(self) -> None:
        _check_size(self.image_px)

    def __call__(self, image: PILImage.Image) -> Float[np.ndarray, "3 H W"]:
        """Pixels of an RGB picture, float32, [-1, 1]."""
        pixels = _square(image, self.image_px, PILImage.Resampling.BILINEAR)
        return np.ascontiguousarray((pixels / np.float32(127.5) - np.float32(1)).transpose(2, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The transform that `to_dict` wrote; unknown keys raise ConfigError."""
        _check_keys(cls, value)
        return cls(**value)


def _square(
    image: PILImage.Image, size: int, resample: PILImage.Resampling
) -> Float[np.ndarray, "size size 3"]:
    """Shortest side to `size`, then the centre; float32, [0, 255]. A picture already of that size is not
    resampled."""
    width, height = image.size
    shortest = min(width, height)
    if shortest != size:
        width, height = size * width // shortest, size * height // shortest
        image = image.resize((width, height), resample=resample)
    left, top = (width - size) // 2, (height - size) // 2
    if (width, height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.float32)


def _check_size(image_px: int) -> None:
    if image_px < 1:
        raise ConfigError(f"image_px={image_px} is not a size; expected at least 1; check the transform")


def _check_keys(cls: type[VisionTransform] | type[TargetTransform], value: dict[str, Any]) -> None:
    known = {f.name for f in fields(cls)}
    if not {"image_px"} <= value.keys() <= known:
        raise ConfigError(
            f"{cls.__name__} cannot be read from keys {sorted(value)}; expected image_px and at most "
            f"{sorted(known)}; check the configuration it was saved in"
        )
