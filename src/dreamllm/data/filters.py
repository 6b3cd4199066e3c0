"""Rules that leave documents out: typed, checked, and applied in a fixed order, so that every document that
goes is counted under exactly one of them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dreamllm.data.duplicates import DEFAULT_REMEMBERED, RecentDigests, RecentDocuments
from dreamllm.data.measures import DocumentFacts
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError
from dreamllm.runtime.seeding import derive_seed

EXAMPLES = 3
_RANGES = (("pictures", 0), ("words", 0), ("tokens", 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterRules:
    """Which documents stay. A rule that is left out leaves nothing out."""

    on_fault: Literal["skip", "raise"] = "skip"
    """What becomes of documents that cannot be used: left out and counted, or an error that ends it all."""
    ids: Path | None = None
    """A file with one id a line; only documents with these ids stay."""
    without_ids: Path | None = None
    """A file with one id a line; documents with these ids go."""
    sample_share: float = 1.0
    """Share of documents to keep, drawn by index and seed: the same ones every time."""
    sample_seed: int = 0
    """Which of them."""
    min_pictures: int | None = None
    """Fewest pictures of a document."""
    max_pictures: int | None = None
    """Most pictures of a document."""
    min_words: int | None = None
    """Fewest words of a document: runs of characters between white space."""
    max_words: int | None = None
    """Most words of a document."""
    min_tokens: int | None = None
    """Fewest tokens of the text; needs a tokenizer."""
    max_tokens: int | None = None
    """Most tokens of the text; needs a tokenizer."""
    min_picture_side: int | None = None
    """Pixels that the shorter side of every picture has at least."""
    max_aspect_ratio: float | None = None
    """Longer side by shorter side, at most, of every picture."""
    max_repetition: float | None = None
    """Largest share, in [0, 1], of runs of 20 characters that stood in the same text before."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: a document equal to an earlier kept one goes. near: also one whose text is almost the same and
    whose first picture looks the same."""
    similarity: float = 0.8
    """Jaccard similarity of texts from which on they are almost the same."""
    remembered: int = DEFAULT_REMEMBERED
    """Kept documents that a new one is compared with, the most recent ones; about 500 bytes each."""

    def __post_init__(self) -> None:
        for name, least in _RANGES:
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if (low is not None and low < least) or (high is not None and high < (low or least)):
                raise ConfigError(
                    f"min_{name} is {low} and max_{name} is {high}; expected {least} or more, and a maximum "
                    "not below the minimum; correct them"
                )
        positive = {"min_picture_side": 1, "max_aspect_ratio": 1, "remembered": 1}
        for name, at_least in positive.items():
            value = getattr(self, name)
            if value is not None and not value >= at_least:
                raise ConfigError(
                    f"{name} is {value}; expected at least {at_least}; raise it or leave it out"
                )
        for name in ("sample_share", "max_repetition", "similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; expected a share in [0, 1]; correct it")

    @property
    def needs_tokens(self) -> bool:
        """Whether a rule counts tokens."""
        return self.min_tokens is not None or self.max_tokens is not None

    @property
    def is_empty(self) -> bool:
        """Whether these are the defaults, which leave out nothing but faults."""
        return self == FilterRules(on_fault=self.on_fault)


class Filter:
    """Rules in use: it remembers what it kept, and counts what it left out."""

    def __init__(self, rules: FilterRules, *, num_documents: int | None = None) -> None:
        """Read the id lists. For fewer documents than the rules remember, their number saves memory.

        Raises:
            ConfigError: an id list cannot be read, or is empty.
        """
        self.rules = rules
        self.num_kept = 0
        self.dropped: Counter[str] = Counter()
        """Documents left out, by the rule that did it."""
        self.examples: dict[str, list[str]] = {}
        """The first of each rule: index and id, or the fault."""
        self._ids = None if rules.ids is None else _read_ids(rules.ids)
        self._without_ids = frozenset() if rules.without_ids is None else _read_ids(rules.without_ids)
        remembered = rules.remembered if num_documents is None else min(rules.remembered, num_documents)
        self._digests = RecentDigests(remembered if rules.duplicates != "keep" else 1)
        self._near = (
            RecentDocuments(remembered, similarity=rules.similarity) if rules.duplicates == "near" else None
        )

    def keeps(self, index: int, facts: DocumentFacts | FaultError) -> bool:
        """Whether the document at an index stays. To be asked once for each, in order.

        Raises:
            FaultError: the document cannot be used, and `on_fault` is `raise`.
        """
        if isinstance(facts, FaultError):
            if self.rules.on_fault == "raise":
                raise FaultError(facts.kind, f"document {index}: {facts}")
            return self._drop(f"fault: {facts.kind}", f"{index}: {facts}")
        for rule in self._broken(index, facts):
            return self._drop(rule, f"{index}: {facts.id}" if facts.id else f"{index}")
        self.num_kept += 1
        return True

    def to_dict(self) -> dict[str, Any]:
        """A JSON value: the rules that differ from their defaults, and what each of them left out."""
        rules = {
            field.name: str(value) if isinstance(value, Path) else value
            for field in fields(self.rules)
            if (value := getattr(self.rules, field.name)) != field.default
        }
        return {
            "kept": self.num_kept,
            "dropped": dict(self.dropped),
            "examples": self.examples,
            "rules": rules,
        }

    def _drop(self, rule: str, example: str) -> bool:
        self.dropped[rule] += 1
        examples = self.examples.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            examples.append(example)
        return False

    def _broken(self, index: int, facts: DocumentFacts) -> Iterator[str]:
        """The rules a document breaks, cheap ones first; duplicates last, so that only kept ones count."""
        rules = self.rules
        if self._ids is not None and facts.id not in self._ids:
            yield "ids"
        if facts.id in self._without_ids:
            yield "without_ids"
        if rules.sample_share < 1 and derive_seed(rules.sample_seed, index) >= rules.sample_share * 2**63:
            yield "sample_share"
        for name, value in (
            ("pictures", len(facts.pictures)),
            ("words", facts.num_words),
            ("tokens", facts.num_tokens),
        ):
            yield from self._outside(name, value)
        if rules.min_picture_side is not None and any(
            picture.shorter_side_px < rules.min_picture_side for picture in facts.pictures
        ):
            yield "min_picture_side"
        if rules.max_aspect_ratio is not None and any(
            picture.aspect_ratio > rules.max_aspect_ratio for picture in facts.pictures
        ):
            yield "max_aspect_ratio"
        if rules.max_repetition is not None and facts.repetition > rules.max_repetition:
            yield "max_repetition"
        if rules.duplicates != "keep" and self._digests.seen(facts.digest):
            yield "duplicates: exact"
        if self._near is not None:
            if facts.sketch is None:
                raise ConfigError(
                    "duplicates is near, but documents were measured without sketches; expected "
                    "MeasureOptions(sketch=True); measure them so"
                )
            if self._near.find_or_add(facts.sketch, index) is not None:
                yield "duplicates: near"

    def _outside(self, name: str, value: int | None) -> Iterator[str]:
        low, high = getattr(self.rules, f"min_{name}"), getattr(self.rules, f"max_{name}")
        if low is None and high is None:
            return
        if value is None:
            raise ConfigError(
                f"min_{name} is {low} and max_{name} is {high}, but no {name} were counted; expected a "
                "tokenizer to count with; name its folder"
            )
        if low is not None and value < low:
            yield f"min_{name}"
        if high is not None and value > high:
            yield f"max_{name}"


def _read_ids(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot read ids from {path}: {reason}; expected UTF-8 text with one id a line; check the path"
        ) from error
    ids = frozenset(line.strip() for line in lines if line.strip())
    if not ids:
        raise ConfigError(f"{path} holds no ids; expected one a line; fill it or leave the rule out")
    return ids
