"""Pictures to arrays: one view for the vision encoder, one for the image decoder (DreamLLM, section 3.2).

By default both views show the same part of a picture: the shortest side is brought to size and the centre is
cut out. There is no random flip, which would make "left" and "right" wrong and mirror rendered text. A view
is made in two steps: `levels`, a byte a value, which is what training carries to the device, and their
`scaling` to what a model reads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.data.image_processors import (
    CLIP_MEAN,
    CLIP_STD,
    Fit,
    Resample,
    default_preprocessor,
    read_preprocessor,
    write_preprocessor,
)
from dreamllm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """From levels in [0, 255] to what a model reads: (levels / divisor - mean) / std, channel by channel."""

    divisor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, levels: Shaped[Tensor, "... 3 H W"]) -> Float[Tensor, "... 3 H W"]:
        """What a model reads, float32, on the device of the levels."""
        mean, std = (torch.tensor(v, device=levels.device)[:, None, None] for v in (self.mean, self.std))
        return (levels.to(torch.float32) / self.divisor).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class VisionTransform:
    """View for the vision encoder, normalised per channel; defaults are those of OpenAI CLIP."""

    image_px: int
    """Side of the square that comes out."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Of pixels in [0, 1]."""
    std: tuple[float, float, float] = CLIP_STD
    """Of pixels in [0, 1]."""
    fit: Fit = "crop"
    """How a picture is brought to a square."""
    resize_px: int | None = None
    """Side to resize to where a margin is cut off afterwards, as DINOv2 does; None: `image_px`."""
    resample: Resample = "bicubic"
    """The filter of the resize."""
    is_rounded: bool = True
    """Whether pixels are 8 bits again after the resize; DINOv3's are not."""

    def __post_init__(self) -> None:
        _check_size(self.image_px)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"mean={self.mean} and std={self.std} cannot normalise RGB; "
                "expected three values each, std above 0; check the preprocessor of the vision encoder"
            )
        if self.resize_px is not None and self.resize_px <= self.image_px:
            raise ConfigError(
                f"resize_px={self.resize_px} leaves no margin around image_px={self.image_px}; "
                "expected more than image_px; leave it out for no margin"
            )
        for name, known in (("fit", get_args(Fit)), ("resample", get_args(Resample))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")

    def __call__(self, image: PILImage.Image) -> Float[np.ndarray, "3 H W"]:
        """What the vision encoder reads of an RGB picture, float32."""
        return _scaled(self.levels(image), self.scaling)

    def levels(self, image: PILImage.Image) -> Shaped[np.ndarray, "3 H W"]:
        """The view of an RGB picture before it is normalised; uint8, or float32 if not rounded."""
        side = self.resize_px or self.image_px
        return _resized_centre(
            image,
            _shortest_side_to(side, image) if self.fit == "crop" else (side, side),
            self.image_px,
            resample=PILImage.Resampling[self.resample.upper()],
            is_rounded=self.is_rounded,
        )

    @property
    def scaling(self) -> Scaling:
        """From levels to what the vision encoder reads."""
        return Scaling(divisor=255, mean=self.mean, std=self.std)

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `from_dict` is its inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The transform that `to_dict` wrote; unknown keys raise ConfigError."""
        _check_keys(cls, value)
        known: dict[str, Any] = {key: tuple(v) if key in ("mean", "std") else v for key, v in value.items()}
        return cls(**known)

    @classmethod
    def from_preprocessor(cls, config: Mapping[str, Any], *, image_px: int | None = None) -> Self:
        """What the stock processor of a `preprocessor_config.json` does; `image_px` is the side that the
        vision model reads, None for a model that reads any.

        Raises:
            ConfigError: the file asks for what is not offered here, or its pictures have another size.
        """
        transform = cls(**read_preprocessor(config))
        if image_px not in (None, transform.image_px):
            raise ConfigError(
                f"preprocessor_config.json makes pictures of {transform.image_px} pixels but the vision "
                f"model reads {image_px}; give the preprocessor of this model, or correct its sizes"
            )
        return transform

    @classmethod
    def for_model_type(cls, model_type: str, *, image_px: int) -> Self:
        """The view with which vision models of a type were trained; for folders without a preprocessor."""
        return cls.from_preprocessor(default_preprocessor(model_type, image_px=image_px), image_px=image_px)

    def to_preprocessor(self) -> dict[str, Any]:
        """A `preprocessor_config.json` of a stock class that makes the same pixels; `from_preprocessor` is
        its inverse. The class for pixels that are not rounded needs torchvision."""
        return write_preprocessor(**asdict(self))


@dataclass(frozen=True, slots=True)
class TargetTransform:
    """View for the image decoder: bilinear, [-1, 1]."""

    image_px: int

    def __post_init__(self) -> None:
        _check_size(self.image_px)

    def __call__(self, image: PILImage.Image) -> Float[np.ndarray, "3 H W"]:
        """What the image decoder draws of an RGB picture, float32, [-1, 1]."""
        return _scaled(self.levels(image), self.scaling)

    def levels(self, image: PILImage.Image) -> Shaped[np.ndarray, "3 H W"]:
        """The view of an RGB picture before it is scaled, uint8."""
        size = _shortest_side_to(self.image_px, image)
        return _resized_centre(image, size, self.image_px, resample=PILImage.Resampling.BILINEAR)

    @property
    def scaling(self) -> Scaling:
        """From levels to [-1, 1]."""
        return Scaling(divisor=127.5, mean=(1, 1, 1), std=(1, 1, 1))

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The transform that `to_dict` wrote; unknown keys raise ConfigError."""
        _check_keys(cls, value)
        return cls(**value)


def _shortest_side_to(side: int, image: PILImage.Image) -> tuple[int, int]:
    """Width and height with the shortest brought to `side`; the other is rounded down."""
    width, height = image.size
    shortest = min(width, height)
    return side * width // shortest, side * height // shortest


def _resized_centre(
    image: PILImage.Image,
    size: tuple[int, int],
    side: int,
    *,
    resample: PILImage.Resampling,
    is_rounded: bool = True,
) -> Shaped[np.ndarray, "3 side side"]:
    """The square in the middle after a resize, half a pixel up and left where it cannot be exact; [0, 255],
    uint8 if rounded. A picture already of that size is not resampled."""
    if image.size != size and is_rounded:
        image = image.resize(size, resample=resample)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    levels = np.empty((3, side, side), np.uint8 if is_rounded else np.float32)
    for channel, view in zip(image.split(), levels, strict=True):
        if channel.size != size:
            channel = channel.convert("F").resize(size, resample=resample)
        view[:] = np.asarray(channel)[top : top + side, left : left + side]
    return levels


def _scaled(levels: Shaped[np.ndarray, "3 H W"], scaling: Scaling) -> Float[np.ndarray, "3 H W"]:
    pixels: np.ndarray = scaling(torch.from_numpy(levels)).numpy()
    return pixels


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
