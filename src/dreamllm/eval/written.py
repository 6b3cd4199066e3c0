"""What a generated document adds to its prompt, taken apart: the answer, pictures, decisions to draw."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.world.reading import Facts, GrammarError, read_text, shows_something


def written(prompt: Document, document: Document) -> tuple[Part, ...]:
    """The parts that were generated."""
    return document.parts[len(prompt.parts) :]


def answer_of(prompt: Document, document: Document) -> str:
    """The generated text."""
    return "".join(part.text for part in written(prompt, document) if isinstance(part, Text)).strip()


def picture_of(prompt: Document, document: Document) -> PILImage.Image:
    """The one generated picture of a drawing prompt."""
    (part,) = written(prompt, document)
    assert isinstance(part, Image)  # in mode 'image' the engine draws one picture and nothing else
    return part.load()


@dataclass(frozen=True, slots=True)
class Claim:
    """A generated picture, and what the text before it asserts of it."""

    picture: PILImage.Image
    facts: Facts | None
    """None where the text was not in the world's grammar, here or earlier in the document."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions to draw: right ones, ones too many, ones missed."""

    hits: int
    false: int
    missed: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """As the statistics of `intervals.py` read them."""
        return self.hits, self.false, self.missed


def claims(parts: Sequence[Part]) -> list[Claim]:
    """Every picture with the facts of the paragraphs before it, each read in the light of those before.

    After a sentence outside the grammar nothing is known any more: later sentences of change have no ground.
    """
    found: list[Claim] = []
    facts: Facts | None = Facts()
    for part in parts:
        if isinstance(part, Text):
            facts = _read_on(part.text, facts)
        else:
            found.append(Claim(part.load(), facts))
    return found


def is_readable(parts: Sequence[Part]) -> bool:
    """Whether all text is in the grammar."""
    facts: Facts | None = Facts()
    for part in parts:
        if isinstance(part, Text):
            facts = _read_on(part.text, facts)
    return facts is not None


def decisions(parts: Sequence[Part]) -> Decisions:
    """Whether a picture stands exactly after each sentence that shows something new.

    A title, an ending, "Nothing changes for a while." and what is not in the grammar show nothing.
    """
    hits = false = missed = 0
    is_due = False
    for part in parts:
        if isinstance(part, Image):
            hits, false = (hits + 1, false) if is_due else (hits, false + 1)
            is_due = False
            continue
        for sentence in re.findall(r"[^.]+\.", part.text):
            missed += is_due
            is_due = shows_something(sentence)
        rest = part.text.rpartition(".")[2].strip()
        if rest:  # a sentence without its end is not yet a reason to draw
            missed += is_due
            is_due = False
    return Decisions(hits, false, missed + is_due)


def _read_on(text: str, facts: Facts | None) -> Facts | None:
    if facts is None:
        return None
    try:
        return read_text(text, facts)
    except GrammarError:
        return None
