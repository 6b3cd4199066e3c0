"""Documents that repeat: exactly, by their digest; nearly, by sketches of text and first picture.

Nearly: the same number of pictures, the first of them looks the same, and the texts share most of their
character runs. Memory is bounded: what is remembered are the most recent documents, and how many is chosen.
Texts and pictures meet in tables of fixed size in which the newer entry replaces the older; since two alike
documents share several keys, and what a key finds is compared before it counts, that loses little.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8, UInt64

from dreamllm.data.sketches import (
    PICTURE_KEYS,
    SKETCH_SIZE,
    TEXT_KEYS,
    THUMBNAIL_PX,
    picture_distance,
    picture_keys,
    sketch_bytes,
    text_keys,
    text_similarity,
)

DEFAULT_REMEMBERED: Final = 2**19
"""Documents; their memory is about 250 MB."""
MAX_PICTURE_DISTANCE: Final = 16
"""Of 255, in any of the 64 cells: half the size or JPEG at quality 50 stays below, another picture above."""
_ROW = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentSketch:
    """What is compared of a document."""

    text: UInt64[np.ndarray, "120"] | None
    """Sketch of its text; None without text."""
    picture: UInt8[np.ndarray, "8 8 3"] | None
    """Thumbnail of its first picture; None without pictures."""
    num_pictures: int


class RecentDigests:
    """A set of 64-bit digests with a bound on its memory: 16 bytes for each of `remembered`."""

    def __init__(self, remembered: int) -> None:
        self._rows = np.zeros((max(1, remembered // (_ROW // 2)), _ROW), dtype=np.uint64)  # half full
        self._next = np.zeros(len(self._rows), dtype=np.uint8)

    def seen(self, digest: int) -> bool:
        """Whether this digest came before; it has come now."""
        digest = digest or 1  # 0 is an empty place
        index = digest % len(self._rows)
        row = self._rows[index]
        if (row == np.uint64(digest)).any():
            return True
        row[self._next[index]] = digest
        self._next[index] = (self._next[index] + 1) % _ROW
        return False


class RecentDocuments:
    """The most recent documents that are not like one before them, to be asked for one like another."""

    def __init__(self, remembered: int = DEFAULT_REMEMBERED, *, similarity: float = 0.8) -> None:
        """Remember that many documents; texts are alike from that Jaccard similarity on."""
        self._remembered = max(1, remembered)
        self._similarity = similarity
        self._added = 0
        self._table = np.zeros((TEXT_KEYS + PICTURE_KEYS, self._remembered), dtype=np.int32)  # place + 1
        self._numbers = np.zeros(self._remembered, dtype=np.int64)
        self._num_pictures = np.zeros(self._remembered, dtype=np.int32)
        self._texts = np.zeros((self._remembered, SKETCH_SIZE), dtype=np.uint8)
        self._has_text = np.zeros(self._remembered, dtype=np.bool_)
        self._pictures = np.zeros((self._remembered, THUMBNAIL_PX, THUMBNAIL_PX, 3), dtype=np.uint8)

    def find_or_add(self, sketch: DocumentSketch, number: int) -> int | None:
        """The number of an earlier document like this one; None if there is none, and then it is remembered.

        Documents without text and pictures are like nothing.
        """
        columns, keys = self._keys(sketch)
        if not len(columns):
            return None
        slots = (keys % np.uint64(self._remembered)).astype(np.int64)
        candidates = np.unique(self._table[columns, slots])
        candidates = candidates[candidates > 0] - 1
        alike = candidates[self._alike(sketch, candidates)] if len(candidates) else candidates
        if len(alike):
            return int(self._numbers[alike].min())
        place = self._added % self._remembered
        self._added += 1
        self._table[columns, slots] = place + 1
        self._numbers[place] = number
        self._num_pictures[place] = sketch.num_pictures
        self._has_text[place] = sketch.text is not None
        if sketch.text is not None:
            self._texts[place] = sketch_bytes(sketch.text)
        if sketch.picture is not None:
            self._pictures[place] = sketch.picture
        return None

    def _keys(self, sketch: DocumentSketch) -> tuple[np.ndarray, np.ndarray]:
        """Keys, and the column of the table in which each is looked up."""
        columns, keys = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
        if sketch.text is not None:
            columns.append(np.arange(TEXT_KEYS))
            keys.append(text_keys(sketch.text))
        if sketch.picture is not None:
            columns.append(TEXT_KEYS + np.arange(PICTURE_KEYS))
            keys.append(picture_keys(sketch.picture))
        return np.concatenate(columns), np.concatenate(keys)

    def _alike(self, sketch: DocumentSketch, places: np.ndarray) -> np.ndarray:
        """Which of the remembered documents at these places are like this one."""
        alike: np.ndarray = (self._num_pictures[places] == sketch.num_pictures) & (
            self._has_text[places] == (sketch.text is not None)
        )
        if sketch.text is not None:
            bytes_ = sketch_bytes(sketch.text)
            alike &= text_similarity(self._texts[places], bytes_) >= self._similarity
        if sketch.picture is not None:
            alike &= picture_distance(self._pictures[places], sketch.picture) <= MAX_PICTURE_DISTANCE
        return alike
