"""Small fingerprints of texts and pictures, by which near-duplicates are found without comparing everything.

A text's sketch is 120 numbers; the share on which two sketches agree estimates the Jaccard similarity of
their character runs without bias (MinHash; drawn by "Fast similarity sketching", Dahlgaard, Knudsen and
Thorup 2017, arXiv:1704.04370, which reads a long text once, not 120 times). A picture's is its thumbnail of
8 x 8 pixels. Of either, keys are taken such that what is alike shares a key more often than not.
"""

import unicodedata
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Int16, UInt8, UInt64
from PIL import Image as PILImage

SKETCH_SIZE: Final = 120
TEXT_KEYS: Final = 20
"""Keys of a text, each of 6 numbers: two texts that agree on 80 % share one with probability 0.998."""
THUMBNAIL_PX: Final = 8
PICTURE_KEYS: Final = 12
SHINGLE_CHARACTERS: Final = 8
REPETITION_CHARACTERS: Final = 20
MAX_CHARACTERS: Final = 1_000_000
"""What is read of a text; the rest of a longer one is not looked at."""

_NUMBERS_PER_KEY = 20
_DRAWS_AT_ONCE = 1024
_ROUND_BITS = 48
_EMPTY = np.uint64(2**64 - 1)
_DEAD_ZONE = 12
"""Steps between neighbours (of 3 x 255) that count as none: noise decides nothing on a flat picture."""


def normalized(text: str) -> str:
    """The text as it is compared: without case, width variants and kinds of white space."""
    return " ".join(unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold().split())


def repetition(text: str) -> float:
    """The share, in [0, 1], of runs of 20 characters that stood in the text before."""
    runs = _runs(normalized(text), REPETITION_CHARACTERS)
    return 1 - len(np.unique(runs)) / len(runs) if len(runs) else 0.0


def text_sketch(text: str) -> UInt64[np.ndarray, "120"] | None:
    """120 numbers of a text; None of one that is empty.

    In every round each run of characters falls into one of the 120 places; a place keeps the smallest number
    of the first round that fills it, and rounds go on until no place is empty.
    """
    compared = normalized(text)
    if not compared:
        return None
    runs = np.unique(_runs(compared.ljust(SHINGLE_CHARACTERS), SHINGLE_CHARACTERS))
    sketch = np.full(SKETCH_SIZE, _EMPTY)
    rounds_at_once = max(1, _DRAWS_AT_ONCE // len(runs))
    first = 0
    while (sketch == _EMPTY).any():
        rounds = np.arange(first, first + rounds_at_once, dtype=np.uint64)[:, None]
        draws = _mix(runs[None, :] ^ _mix(rounds + np.uint64(1)))
        places = (draws >> np.uint64(_ROUND_BITS)) % np.uint64(SKETCH_SIZE)
        numbers = (draws & np.uint64(2**_ROUND_BITS - 1)) | (rounds << np.uint64(_ROUND_BITS))
        np.minimum.at(sketch, places.ravel(), numbers.ravel())
        first += rounds_at_once
    return sketch


def text_similarity(one: UInt8[np.ndarray, "... 120"], other: UInt8[np.ndarray, "... 120"]) -> np.ndarray:
    """The Jaccard similarity of two texts, estimated from the bytes of their sketches."""
    agree = np.mean(one == other, axis=-1)
    by_chance = 1 / 256
    return np.maximum(0.0, (agree - by_chance) / (1 - by_chance))


def sketch_bytes(sketch: UInt64[np.ndarray, "120"]) -> UInt8[np.ndarray, "120"]:
    """One byte of every number: enough to tell whether two are equal, but for one case in 256."""
    return (_mix(sketch) >> np.uint64(56)).astype(np.uint8)


def text_keys(sketch: UInt64[np.ndarray, "120"]) -> UInt64[np.ndarray, "20"]:
    """Keys, of which texts that are much alike share at least one."""
    return _fold(sketch.reshape(TEXT_KEYS, -1))


def thumbnail(picture: PILImage.Image) -> UInt8[np.ndarray, "8 8 3"]:
    """The mean colours of an RGB picture in 8 x 8 cells."""
    small = picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), PILImage.Resampling.BOX, reducing_gap=None)
    return np.asarray(small, dtype=np.uint8)


def picture_distance(
    one: UInt8[np.ndarray, "... 8 8 3"], other: UInt8[np.ndarray, "... 8 8 3"]
) -> np.ndarray:
    """The largest difference of two thumbnails in any cell and colour, 0 to 255."""
    return np.abs(one.astype(np.int16) - other.astype(np.int16)).max(axis=(-3, -2, -1))


def picture_keys(cells: UInt8[np.ndarray, "8 8 3"]) -> UInt64[np.ndarray, "12"]:
    """Keys of a thumbnail, of which pictures that look the same share at least one.

    They are drawn from where it gets brighter or darker (a difference hash) and from coarse colours.
    """
    brightness = cells.astype(np.int16).sum(axis=-1)
    steps = [_sign(np.diff(brightness, axis=axis)).ravel() for axis in (0, 1)]
    half = THUMBNAIL_PX // 2
    colours = cells.reshape(half, 2, half, 2, 3).mean(axis=(1, 3)).astype(np.int16) // 64
    numbers = np.concatenate([*steps, colours.ravel()]).astype(np.uint64)
    return _fold(numbers[_places_of_keys(len(numbers))])


def _sign(steps: Int16[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    """0 for darker, 1 for no step, 2 for brighter."""
    return (1 + (steps > _DEAD_ZONE) - (steps < -_DEAD_ZONE)).astype(np.int16)


@lru_cache(maxsize=1)
def _places_of_keys(num: int) -> np.ndarray:
    """Which numbers of a picture make each key: the same in every process."""
    rng = np.random.default_rng(0)
    return np.stack([rng.choice(num, _NUMBERS_PER_KEY, replace=False) for _ in range(PICTURE_KEYS)])


def _runs(text: str, length: int) -> UInt64[np.ndarray, "N"]:
    """A hash of every run of `length` characters, in reading order."""
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = len(letters) - length + 1
    runs = np.zeros(max(0, count), dtype=np.uint64)
    for offset in range(length if count > 0 else 0):
        runs = runs * np.uint64(0x100000001B3) + letters[offset : offset + count]
    return _mix(runs)


def _fold(rows: UInt64[np.ndarray, "K R"]) -> UInt64[np.ndarray, "K"]:
    """One number a row, another one for equal rows at other places."""
    columns = _mix(np.arange(rows.shape[1], dtype=np.uint64))
    sums = _mix(rows + columns).sum(axis=1, dtype=np.uint64)
    return _mix(sums + np.arange(len(rows), dtype=np.uint64))


def _mix(numbers: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): one to one, all bits depend on all."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
