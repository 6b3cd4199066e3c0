"""What a set of documents holds: counts, faults with examples, distributions, repetitions.

Facts go in one document after another; memory does not grow with their number.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from dreamllm.data.duplicates import DEFAULT_REMEMBERED, RecentDigests, RecentDocuments
from dreamllm.data.measures import DocumentFacts
from dreamllm.document.jsonl import FaultError

EXAMPLES: Final = 3
"""Faults and repetitions shown of each kind."""
_EXACT_BELOW = 32
_BINS_PER_OCTAVE = 16
_PICTURES_PER_DOCUMENT = 4


class Histogram:
    """A distribution of numbers from 0 on: exact below 32, then in bins no wider than a sixteenth."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count = 0
        self.total = 0
        self.smallest: int | None = None
        self.largest: int | None = None

    def add(self, value: int) -> None:
        """Count one number."""
        self._bins[_floor(value)] += 1
        self.count += 1
        self.total += value
        self.smallest = value if self.smallest is None else min(self.smallest, value)
        self.largest = value if self.largest is None else max(self.largest, value)

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> int:
        """The number below or at which that share of them lies: at most a sixteenth too small."""
        wanted, below = share * self.count, 0
        for floor in sorted(self._bins):
            below += self._bins[floor]
            if below >= wanted:
                return floor
        return 0

    def octaves(self) -> list[tuple[int, int, int]]:
        """Rows (from, to, how many) with `to` included: 0, 1, 2-3, 4-7, 8-15 and so on, without gaps."""
        rows: Counter[int] = Counter()
        for floor, count in self._bins.items():
            rows[floor.bit_length()] += count
        if not rows:
            return []
        return [
            (2 ** (bits - 1) if bits else 0, 2**bits - 1, rows[bits])
            for bits in range(min(rows), max(rows) + 1)
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        quantiles = {f"p{share}": self.quantile(share / 100) for share in (5, 50, 95, 99)}
        return {
            "count": self.count,
            "mean": self.mean,
            "min": self.smallest,
            "max": self.largest,
            **quantiles,
            "bins": [{"from": low, "to": high, "count": count} for low, high, count in self.octaves()],
        }


class Statistics:
    """Counts over documents, in the order in which they come."""

    def __init__(self, *, remembered: int = DEFAULT_REMEMBERED, similarity: float = 0.8) -> None:
        """Repetitions are looked for among that many of the most recent documents."""
        self.num_documents = 0
        """Usable ones; faults are counted apart."""
        self.num_conversations = 0
        self.num_unlearned = 0
        """Documents of which a model learns nothing."""
        self.num_empty = 0
        """Documents with neither text nor pictures."""
        self.num_drawn = 0
        self.faults: Counter[str] = Counter()
        self.fault_examples: dict[str, list[tuple[int, str]]] = {}
        """Index and message, up to three of a kind."""
        self.roles: Counter[str] = Counter()
        """Parts by who says them."""
        self.words, self.tokens, self.characters = Histogram(), Histogram(), Histogram()
        self.pictures, self.picture_sides = Histogram(), Histogram()
        self.picture_sizes: Counter[str] = Counter()
        """Pictures by shape: wide, tall, square, very long."""
        self.repeated: Counter[str] = Counter()
        """Documents, texts and pictures that came before."""
        self.repeated_examples: dict[str, list[tuple[int, int]]] = {}
        """Documents that nearly repeat: index, and index of the earlier one."""
        self.remembered = remembered
        self._documents, self._texts = RecentDigests(remembered), RecentDigests(remembered)
        self._pictures = RecentDigests(remembered * _PICTURES_PER_DOCUMENT)
        self._near = RecentDocuments(remembered, similarity=similarity)

    def add(self, index: int, facts: DocumentFacts | FaultError) -> None:
        """Count the document at an index."""
        if isinstance(facts, FaultError):
            self._add_fault(index, facts)
            return
        self.num_documents += 1
        self.num_conversations += bool(facts.roles)
        self.num_unlearned += not facts.learns
        self.num_empty += not (facts.num_characters or facts.pictures)
        self.roles.update(facts.roles)
        self.words.add(facts.num_words)
        self.characters.add(facts.num_characters)
        if facts.num_tokens is not None:
            self.tokens.add(facts.num_tokens)
        self.pictures.add(len(facts.pictures))
        for picture in facts.pictures:
            self.num_drawn += picture.is_drawn
            self.picture_sides.add(picture.shorter_side_px)
            self.picture_sizes[_shape(picture.width, picture.height)] += 1
        self._add_repetitions(index, facts)

    def _add_fault(self, index: int, fault: FaultError) -> None:
        self.faults[fault.kind] += 1
        examples = self.fault_examples.setdefault(fault.kind, [])
        if len(examples) < EXAMPLES:
            examples.append((index, str(fault)))

    def _add_repetitions(self, index: int, facts: DocumentFacts) -> None:
        is_equal = self._documents.seen(facts.digest)
        self.repeated["documents, exactly"] += is_equal
        if facts.num_characters:
            self.repeated["texts, exactly"] += self._texts.seen(facts.text_digest)
        for picture in facts.pictures:
            self.repeated["pictures, exactly"] += self._pictures.seen(picture.digest)
        if facts.sketch is None:
            return
        earlier = self._near.find_or_add(facts.sketch, index)
        if earlier is None or is_equal:
            return
        self.repeated["documents, nearly"] += 1
        examples = self.repeated_examples.setdefault("documents, nearly", [])
        if len(examples) < EXAMPLES:
            examples.append((index, earlier))

    def to_dict(self) -> dict[str, Any]:
        """A JSON value with everything that was counted."""
        return {
            "documents": self.num_documents,
            "conversations": self.num_conversations,
            "plain_documents": self.num_documents - self.num_conversations,
            "documents_without_anything_to_learn": self.num_unlearned,
            "empty_documents": self.num_empty,
            "faults": dict(self.faults),
            "fault_examples": {
                kind: [{"index": index, "message": message} for index, message in examples]
                for kind, examples in self.fault_examples.items()
            },
            "parts_by_role": dict(self.roles),
            "words": self.words.to_dict(),
            "tokens": self.tokens.to_dict() if self.tokens.count else None,
            "characters": self.characters.to_dict(),
            "pictures_per_document": self.pictures.to_dict(),
            "pictures": {
                "count": self.pictures.total,
                "drawn": self.num_drawn,
                "read": self.pictures.total - self.num_drawn,
                "shapes": dict(self.picture_sizes),
                "shorter_side_px": self.picture_sides.to_dict(),
            },
            "repeated": dict(self.repeated),
            "repeated_examples": {
                kind: [{"index": index, "like": earlier} for index, earlier in examples]
                for kind, examples in self.repeated_examples.items()
            },
        }


def _shape(width: int, height: int) -> str:
    names = ("about square", "up to 2 : 1", "up to 4 : 1", "longer than 4 : 1")
    return names[bisect_right((1.1, 2.0, 4.0), max(width, height) / min(width, height))]


def _floor(value: int) -> int:
    """The lowest number of the bin that holds a number."""
    if value < _EXACT_BELOW:
        return value
    step: int = 2 ** (value.bit_length() - _BINS_PER_OCTAVE.bit_length())
    return value // step * step


def fault_rows(statistics: Statistics) -> Iterator[tuple[str, int, list[tuple[int, str]]]]:
    """Kind, count and examples, the most frequent kind first."""
    for kind, count in statistics.faults.most_common():
        yield kind, count, statistics.fault_examples[kind]
