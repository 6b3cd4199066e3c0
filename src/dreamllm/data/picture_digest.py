"""A name for a picture's content: what caches find it by."""

import hashlib
from pathlib import Path

from dreamllm.document.document import Image
from dreamllm.errors import ImageError

DIGEST_BYTES = 16
"""Of SHA-256: among 2**40 pictures two share them with a probability of 2**-49."""


def picture_digest(image: Image) -> bytes:
    """16 bytes that follow from the picture file alone, wherever it lies; nothing is decoded.

    A picture that is already open has no file: its RGB pixels and size count.

    Raises:
        ImageError: the file cannot be read, or an open picture cannot be used.
    """
    match image.source:
        case bytes():
            return _digest(image.source)
        case Path():
            try:
                return _digest(image.source.read_bytes())
            except (OSError, ValueError) as error:  # ValueError: a null character in the path
                raise ImageError(
                    f"picture {image.source} cannot be read: {error}; expected a readable file; check the "
                    "path, or the folder it is relative to"
                ) from error
        case _:
            rgb = image.load()
            return _digest(f"RGB {rgb.width}x{rgb.height}\n".encode() + rgb.tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
