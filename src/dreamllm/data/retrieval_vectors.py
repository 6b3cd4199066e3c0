"""Vectors that documents are found by: one of the text, one of the pictures, and the mean of both.

A document's vector is the mean of its unit text vector and its unit image vector, brought to length one
(RA-CM3, arXiv:2211.12561); where it has text or pictures alone, it is that vector.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image as PILImage

from dreamllm.document.document import Document, Text

_THUMBNAIL_PX = 8
_SEED = 8_311


class DocumentEncoderForRetrieval(Protocol):
    """Words and pictures to vectors of one width."""

    @property
    def name(self) -> str:
        """Names what decides the vectors: indexes of another name cannot be searched with it."""
        ...

    def text(self, texts: list[str]) -> Float[np.ndarray, "n w"]:
        """A vector for each text, of any length but zero where it says something."""
        ...

    def images(self, images: list[PILImage.Image]) -> Float[np.ndarray, "n w"]:
        """A vector for each RGB picture."""
        ...


@dataclass(frozen=True, slots=True)
class DocumentVectors:
    """Vectors of a document, each of length one, or zero where there is nothing."""

    whole: Float[np.ndarray, " w"]
    text: Float[np.ndarray, " w"] | None
    image: Float[np.ndarray, " w"] | None


def unit(vectors: Float[np.ndarray, "*n w"]) -> Float[np.ndarray, "*n w"]:
    """The vectors with length one, float32; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def text_of(document: Document) -> str:
    """All words of a document."""
    return " ".join(part.text.strip() for part in document if isinstance(part, Text) if part.text.strip())


def document_vectors(
    documents: Sequence[Document], encoder: DocumentEncoderForRetrieval
) -> list[DocumentVectors]:
    """The vectors of documents. A picture of several counts as much as the others.

    Raises:
        ImageError: a picture cannot be read.
    """
    texts = [text_of(document) for document in documents]
    said = unit(encoder.text([text for text in texts if text])) if any(texts) else None
    images = [image.load() for document in documents for image in document.images]
    shown = unit(encoder.images(images)) if images else None
    found: list[DocumentVectors] = []
    text_row = image_row = 0
    for document, words in zip(documents, texts, strict=True):
        text = image = None
        if words and said is not None:
            text, text_row = said[text_row], text_row + 1
        if (count := len(document.images)) and shown is not None:
            image, image_row = unit(shown[image_row : image_row + count].mean(0)), image_row + count
        found.append(DocumentVectors(_mean(text, image), text, image))
    return found


def _mean(
    text: Float[np.ndarray, " w"] | None, image: Float[np.ndarray, " w"] | None
) -> Float[np.ndarray, " w"]:
    parts = [vector for vector in (text, image) if vector is not None]
    return unit(np.mean(parts, axis=0)) if parts else np.zeros(0, dtype=np.float32)


class HashedWords:
    """Counts of words and of neighbouring words, hashed to places; pictures as random views of thumbnails.

    It knows nothing of what words mean or pictures show, and nothing joins its texts to its pictures: for
    tiny runs and tests.
    """

    def __init__(self, width: int = 512) -> None:
        self.width = width
        views = np.random.default_rng(_SEED).standard_normal((3 * _THUMBNAIL_PX**2, width))
        self._views = views.astype(np.float32)

    @property
    def name(self) -> str:
        """The kind and the width."""
        return f"hashed_words {self.width}"

    def text(self, texts: list[str]) -> Float[np.ndarray, "n w"]:
        """Signed counts; case and punctuation do not matter."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            for term in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
                code = zlib.crc32(term.encode())
                vector[(code >> 1) % self.width] += 1 if code & 1 else -1
        return vectors

    def images(self, images: list[PILImage.Image]) -> Float[np.ndarray, "n w"]:
        """Fixed random views of thumbnails, less the mean color of each."""
        size = (_THUMBNAIL_PX, _THUMBNAIL_PX)
        small = [np.asarray(image.resize(size, PILImage.Resampling.BOX), np.float32) for image in images]
        contrast = [pixels - pixels.mean((0, 1)) for pixels in small]
        return np.stack(contrast).reshape(len(images), -1) @ self._views / 255
