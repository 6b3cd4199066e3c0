"""Stock `preprocessor_config.json` files: what they say about a picture for the vision encoder, and back.

The classes of transformers for CLIP, SigLIP, SigLIP 2 and DINO resize, crop and normalise; a file says how,
and what it leaves out, or sets to null, is the default of its class.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from dreamllm.errors import ConfigError

Fit = Literal["crop", "squash"]
"""`crop`: the shortest side is brought to size, the rest is cut off. `squash`: every side is."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Filters, in the order of Pillow's numbers for them."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_UNROUNDED: Final = "DINOv3ViTImageProcessor"
"""The one class that resizes pictures without rounding them to 8 bits again."""

_DO_ALL: Final = {
    "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "do_center_crop": False,
}  # fmt: skip
_CROP: Final = {
    "do_center_crop": True, "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
    "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "CLIPImageProcessor": _DO_ALL | _CROP,
    "BitImageProcessor": _DO_ALL | _CROP,
    "SiglipImageProcessor": _DO_ALL
    | {"size": {"height": 224, "width": 224}, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "Siglip2ImageProcessor": _DO_ALL
    | {"patch_size": 16, "max_num_patches": 256, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    _UNROUNDED: _DO_ALL
    | {
        "size": {"height": 224, "width": 224}, "default_to_square": True,
        "resample": 2, "image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD,
    },
}  # fmt: skip
"""Per stock class, what a file that is silent means."""


def default_preprocessor(model_type: str, *, image_px: int) -> dict[str, Any]:
    """The stock configuration that the authors of a family of vision encoders published, at any size; for
    folders without a `preprocessor_config.json`.

    Raises:
        ConfigError: the type, which is that of the vision model or of the two-tower model, is not known.
    """
    square = {"height": image_px, "width": image_px}
    match model_type.removesuffix("_vision_model"):
        case "clip":
            return {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": image_px},
                "crop_size": square,
            }
        case "siglip":
            return {"image_processor_type": "SiglipImageProcessor", "size": square}
        case "siglip2":  # NaFlex; its own class would keep the shape of a picture
            return {"image_processor_type": "SiglipImageProcessor", "size": square, "resample": 2}
        case "dinov2" | "dinov2_with_registers":
            return {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": round(image_px * 256 / 224)},
                "crop_size": square,
                "image_mean": _IMAGENET_MEAN,
                "image_std": _IMAGENET_STD,
            }
        case "dinov3_vit":
            return {"image_processor_type": _UNROUNDED, "size": square}
    raise ConfigError(
        f"nothing is known of how pictures are made for a vision model of type {model_type!r}; "
        "expected clip, siglip, siglip2, dinov2, dinov2_with_registers or dinov3_vit; "
        "put a preprocessor_config.json beside its weights"
    )


def read_preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a VisionTransform that does what a stock processor of this configuration does.

    A `Siglip2ImageProcessor` keeps the shape of a picture and varies the number of patches in a row. Here it
    stands for the square that has as many patches, onto which pictures are squashed as SigLIP's are.

    Raises:
        ConfigError: the class is not known, or it is told to do what a VisionTransform does not.
    """
    name = _class_name(config)
    values = dict(_DEFAULTS[name]) | {key: value for key, value in config.items() if value is not None}
    for switch in ("do_resize", "do_rescale"):
        if not values[switch]:
            raise _refused(f"{switch} is {values[switch]}", "True")
    if not math.isclose(values["rescale_factor"], 1 / 255, rel_tol=1e-6):
        raise _refused(f"rescale_factor is {values['rescale_factor']}", "1/255")
    if values.get("do_pad"):
        raise _refused("do_pad is True", "a picture that fills its square")
    fit, resized_px = _resized(name, values)
    image_px = _cropped(values, resized_px) if values["do_center_crop"] else resized_px
    if fit == "crop" and not values["do_center_crop"]:
        raise _refused("do_center_crop is False with a shortest_edge", "a square picture")
    mean, std = (values["image_mean"], values["image_std"]) if values["do_normalize"] else (0.0, 1.0)
    return {
        "image_px": image_px,
        "mean": _channels(mean),
        "std": _channels(std),
        "fit": fit,
        "resize_px": resized_px if resized_px != image_px else None,
        "resample": _filter(values["resample"]),
        "is_rounded": name != _UNROUNDED,
    }


def write_preprocessor(
    *,
    image_px: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fit: Fit,
    resize_px: int | None,
    resample: Resample,
    is_rounded: bool,
) -> dict[str, Any]:
    """A stock configuration that `AutoImageProcessor` reads; the inverse of `read_preprocessor`."""
    resized_px = resize_px or image_px
    does_crop = fit == "crop" or resized_px != image_px
    square = {"height": resized_px, "width": resized_px}
    config = {
        "image_processor_type": "CLIPImageProcessor" if does_crop else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized_px} if fit == "crop" else square,
        "resample": get_args(Resample).index(resample),
        "do_center_crop": does_crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if does_crop:
        config["crop_size"] = {"height": image_px, "width": image_px}
    if not is_rounded:
        config["image_processor_type"] = _UNROUNDED
    return config


def _class_name(config: Mapping[str, Any]) -> str:
    """The stock class, also where it is written under its old name or as one of its variants."""
    written = config.get("image_processor_type") or config.get("feature_extractor_type")
    name = str(written).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in _DEFAULTS:
        raise _refused(f"image_processor_type is {written!r}", f"one of {', '.join(_DEFAULTS)}")
    return name


def _resized(name: str, values: Mapping[str, Any]) -> tuple[Fit, int]:
    """How a picture is brought to size, and to which: its shortest side, or the square's."""
    if name == "Siglip2ImageProcessor":
        return "squash", math.isqrt(values["max_num_patches"]) * values["patch_size"]
    match values["size"]:
        case {"shortest_edge": int(side), **others} if not others:
            return "crop", side
        case {"height": int(side), "width": int(width), **others} if width == side and not others:
            return "squash", side
        case [int(side), int(width)] if width == side:
            return "squash", side
        case int(side):
            return ("squash" if values.get("default_to_square") else "crop"), side
    raise _refused(f"size is {values['size']}", "shortest_edge alone, or equal height and width")


def _cropped(values: Mapping[str, Any], resized_px: int) -> int:
    """Side of the square that is cut from the centre."""
    match values.get("crop_size"):
        case {"height": int(side), "width": int(width), **others} if width == side and not others:
            pass
        case [int(side), int(width)] if width == side:
            pass
        case int(side):
            pass
        case other:
            raise _refused(f"crop_size is {other}", "equal height and width")
    if side > resized_px:
        raise _refused(f"crop_size is {side}", f"at most size, {resized_px}, because nothing is padded")
    return side


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (float(value),) * 3


def _filter(resample: Any) -> Resample:
    """Pillow's number of a filter -> its name."""
    names: tuple[Resample, ...] = get_args(Resample)
    if resample not in range(len(names)):
        raise _refused(
            f"resample is {resample!r}", f"Pillow's number of {', '.join(names)} (0..{len(names) - 1})"
        )
    return names[resample]


def _refused(seen: str, expected: str) -> ConfigError:
    return ConfigError(
        f"this preprocessor_config.json cannot be followed: {seen}, expected {expected}; "
        "correct the file, or give a vision_transform of your own"
    )
