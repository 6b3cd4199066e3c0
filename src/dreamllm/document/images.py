"""Pictures in, RGB out: the one place where picture bytes from outside are decoded.

Whatever the file holds (CMYK, 16 bits a channel, one bit, a palette, transparency, an animation, a rotation
in its EXIF data), the result is an upright 8-bit RGB picture. Whatever is wrong with it, the result is an
ImageError that names it. The size in the header is checked before a pixel is decoded.
"""

import base64
import binascii
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from dreamllm.errors import ConfigError, ImageError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # formats decoded without a helper program
_FORMATS_TEXT = "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"

# What Pillow's decoders raise on damaged input; none of it names the file.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    PILImage.DecompressionBombError,
    PILImage.DecompressionBombWarning,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """Sizes of pictures that are accepted."""

    max_pixels: int = 40_000_000
    """Width times height. Pillow itself refuses pictures beyond about 179 million, whatever stands here."""
    min_side_px: int = 1
    """The shorter side."""

    def __post_init__(self) -> None:
        for name, value in (("max_pixels", self.max_pixels), ("min_side_px", self.min_side_px)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1; raise it or leave it out")


DEFAULT_LIMITS = ImageLimits()


def open_image(source: PILImage.Image | bytes | Path, limits: ImageLimits = DEFAULT_LIMITS) -> PILImage.Image:
    """The picture as a new upright RGB picture without metadata, transparency laid over white.

    Of an animation the first frame is taken, of an already open Pillow picture the frame it stands at.
    A one-channel picture of 32-bit integers is read as 16-bit values, one of floats as values in [0, 1].

    Raises:
        ImageError: it is missing, of an unknown type, corrupt, truncated, or outside the limits.
    """
    name = _name(source)
    if isinstance(source, PILImage.Image):
        return _decode(source, limits=limits, name=name)
    with _open_stream(source, name=name) as stream:
        try:
            image = PILImage.open(stream, formats=_FORMATS)
        except UnidentifiedImageError as error:
            stream.seek(0)
            raise ImageError(
                f"{name} is not a picture that can be read: it starts with {stream.read(12)!r}; "
                f"expected an undamaged {_FORMATS_TEXT} file; convert it or remove it"
            ) from error
        except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
            raise ImageError(
                f"{name} is too large: {error}; expected at most {limits.max_pixels} pixels; scale it down"
            ) from error
        except _DECODE_ERRORS as error:
            raise _corrupt(name, error) from error
        with image:
            return _decode(image, limits=limits, name=name)


def image_size(
    source: PILImage.Image | bytes | Path, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[int, int]:
    """Width and height as the file says, with no pixel decoded; where that says nothing good, by decoding.

    Raises:
        ImageError: as `open_image`.
    """
    if isinstance(source, PILImage.Image):
        return source.size
    with _open_stream(source, name=_name(source)) as stream:
        try:
            with PILImage.open(stream, formats=_FORMATS) as opened:
                width, height = opened.size
        except _DECODE_ERRORS:
            width, height = 0, 0
    if width * height > limits.max_pixels or min(width, height) < limits.min_side_px:
        return open_image(source, limits).size
    return width, height


def png_bytes(image: PILImage.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def png_data_url(image: PILImage.Image) -> str:
    """The picture as a `data:image/png;base64,...` URL."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def data_url_bytes(url: str) -> bytes:
    """The picture file inside a `data:image/...;base64,...` URL, not yet decoded.

    Raises:
        ImageError: it is another kind of URL, or its base64 is damaged.
    """
    header, comma, payload = url.partition(",")
    header = header.lower()
    if not (comma and header.startswith("data:image/") and header.endswith(";base64")):
        raise ImageError(
            f"a picture URL starts with {url[:40]!r}; expected data:image/png;base64,...; "
            "send the picture itself, encoded in the URL: nothing is fetched from a network or a disk"
        )
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"a picture's data URL of {len(url)} characters is not valid base64 ({error}); "
            "expected letters, digits, '+', '/' and padding; encode the picture again"
        ) from error


def _name(source: object) -> str:
    if isinstance(source, PILImage.Image):
        return f"picture {getattr(source, 'filename', '') or 'in memory'} (Pillow, mode {source.mode})"
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    return f"picture {source}"


def _open_stream(source: bytes | Path, *, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        raise ImageError(
            f"a picture's source is a {type(source).__name__}: {str(source)[:80]!r}; "
            "expected a Pillow picture, bytes or a pathlib.Path; wrap a file name in Path(...)"
        )
    try:
        return source.open("rb")
    except FileNotFoundError as error:
        raise ImageError(
            f"{name} does not exist; expected a {_FORMATS_TEXT} file there; "
            "check the path, or the folder it is relative to"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(
            f"{name} cannot be read: {error}; expected a readable file; check its permissions"
        ) from error


def _corrupt(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name} is corrupt or truncated: {type(error).__name__}: {error}; expected a whole "
        f"{_FORMATS_TEXT} file; fetch it again or remove it"
    )


def _decode(image: PILImage.Image, *, limits: ImageLimits, name: str) -> PILImage.Image:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name} is too large: {width} x {height} = {width * height} pixels; expected at most "
            f"{limits.max_pixels}; scale it down, or raise ImageLimits.max_pixels"
        )
    if min(width, height) < limits.min_side_px:
        raise ImageError(
            f"{name} is too small: {width} x {height} pixels; expected at least {limits.min_side_px} "
            "a side; remove it or lower ImageLimits.min_side_px"
        )
    try:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image, name=name)
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _corrupt(name, error) from error
    if upright is not None:
        rgb = rgb.transpose(upright)
    rgb.info.clear()  # an orientation that has been applied must not be applied again
    return rgb


def _orientation(image: PILImage.Image) -> int:
    """EXIF orientation; 1, as it stands, where none can be read: damaged EXIF does not damage the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: PILImage.Image, *, name: str) -> PILImage.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _wide_to_rgb(image, name=name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PILImage.new("RGBA", rgba.size, (255, 255, 255, 255))
        return PILImage.alpha_composite(white, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _wide_to_rgb(image: PILImage.Image, *, name: str) -> PILImage.Image:
    """One channel of more than 8 bits, scaled; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # also catches NaN
        raise ImageError(
            f"{name} has values from {low:g} to {high:g} in mode {image.mode}; expected 0 to {white:g}; "
            "save it with 8 or 16 bits a channel"
        )
    gray = np.floor(values * (255 / white) + 0.5).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return PILImage.fromarray(gray).convert("RGB")
