"""Orders of documents that are computed place by place and never stored.

`Permutation` is a bijection of range(size) in constant memory: a Feistel network over the next power of four,
whose values beyond the size are sent through it again (cycle walking; Black and Rogaway, CT-RSA 2002). It is
no cipher, only well mixed. `GroupedOrder` shuffles at two levels, so that documents which are cheap to read
together stay near each other.
"""

import hashlib
from typing import Final

import numpy as np
from jaxtyping import Int64

_ROUNDS: Final = 6
_MASK: Final = 2**64 - 1


class Permutation:
    """A permutation of range(size), a pure function of its key; nothing but the round keys is held."""

    __slots__ = ("_half", "_keys", "_low", "size")

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._low = (1 << self._half) - 1
        digest = hashlib.shake_256(repr((size, *key)).encode()).digest(8 * _ROUNDS)
        self._keys = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 8 * _ROUNDS, 8)]

    def __getitem__(self, place: int) -> int:
        """What stands at a place of the order.

        Raises:
            IndexError: the place is not below the size.
        """
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of a permutation of {self.size}")
        while True:
            left, right = place >> self._half, place & self._low
            for key in self._keys:
                left, right = right, left ^ (_mixed(right ^ key) & self._low)
            place = left << self._half | right
            if place < self.size:
                return place


class GroupedOrder:
    """An order of documents in groups: groups are permuted, then the documents of `window` groups in a row.

    Memory is a few numbers a group, whatever the number of documents.
    """

    def __init__(self, bounds: Int64[np.ndarray, "n"], *key: int, window: int) -> None:
        """`bounds` are the first documents of the groups, rising, then the number of documents."""
        order = np.random.default_rng([*key, 0]).permutation(len(bounds) - 1)
        self._first = bounds[:-1][order]
        self._ends = np.cumsum(np.diff(bounds)[order])  # where each group ends in the order of groups
        self._key = key
        self._window = window

    def __getitem__(self, place: int) -> int:
        """The document at a place of the order."""
        group = int(np.searchsorted(self._ends, place, side="right"))
        number = group // self._window
        first, last = number * self._window, min((number + 1) * self._window, len(self._ends)) - 1
        start = int(self._ends[first - 1]) if first else 0
        permutation = Permutation(int(self._ends[last]) - start, *self._key, 1 + number)
        place = start + permutation[place - start]
        group = int(np.searchsorted(self._ends, place, side="right"))
        return int(self._first[group]) + place - (int(self._ends[group - 1]) if group else 0)


def _mixed(value: int) -> int:
    """64 bits, each a function of all (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
