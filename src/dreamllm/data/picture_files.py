"""Picture files as archives hold them: told apart by their first bytes, found inside a folder, never decoded.

The check is cheap: it finds pages of HTML, empty files and cut-off downloads of a few bytes. What is damaged
further in is found when the picture is decoded.
"""

from pathlib import Path
from typing import Final

from dreamllm.document.document import Image
from dreamllm.document.images import png_bytes
from dreamllm.document.jsonl import FaultError, picture_path
from dreamllm.errors import ImageError

_HEAD_BYTES: Final = 16
_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    *((f"P{digit}".encode(), "ppm") for digit in range(1, 7)),
)


def picture_suffix(data: bytes) -> str | None:
    """The suffix of a file that starts like this; None for what is no picture that can be opened."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in _STARTS if data.startswith(start)), None)


def picture_bytes(image: Image) -> tuple[str, bytes]:
    """The suffix and the file of a picture: its own bytes where it has any, a PNG file of an open one.

    Raises:
        ImageError: the file cannot be read, or is no picture.
    """
    if isinstance(image.source, bytes):
        data, name = image.source, f"picture of {len(image.source)} bytes"
    elif isinstance(image.source, Path):
        data, name = _read(image.source), f"picture {image.source}"
    else:
        return "png", png_bytes(image.load())
    suffix = picture_suffix(data)
    if suffix is None:
        raise ImageError(f"{name} {_not_a_picture(data)}")
    return suffix, data


def checked_picture(data: bytes, *, where: str) -> bytes:
    """The same bytes, which start like a picture.

    Raises:
        FaultError: they do not.
    """
    if picture_suffix(data[:_HEAD_BYTES]) is None:
        raise FaultError("corrupt_image", f"{where}: the picture {_not_a_picture(data)}")
    return data


def find_picture(folder: Path, name: str, *, where: str) -> Path:
    """The picture file of that relative name in a folder.

    Raises:
        FaultError: the name leaves the folder, there is no such file, or it does not start like a picture.
    """
    try:
        file = folder / picture_path(name)
    except FaultError as fault:
        raise FaultError(fault.kind, f"{where}: {fault}") from fault
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, ValueError) as error:
        raise FaultError(
            "missing_image",
            f"{where}: picture {file} cannot be read ({error}); expected a file there; "
            "restore it, correct the folder of the pictures, or leave the document out",
        ) from error
    if picture_suffix(head) is None:
        raise FaultError("corrupt_image", f"{where}: picture {file} {_not_a_picture(head)}")
    return file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"picture {path} cannot be read: {error.strerror or error}; expected a picture; check the path"
        ) from error


def _not_a_picture(data: bytes) -> str:
    return (
        f"starts with {data[:12]!r}; expected a PNG, JPEG, WebP, GIF, BMP, TIFF or PPM file; "
        "fetch it again or leave the document out"
    )
