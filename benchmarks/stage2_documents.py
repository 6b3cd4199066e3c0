"""Documents in the proportions of DreamLLM's stage II: many pairs, and some web pages that are far longer.

The mixture is that of the released configuration: 10 million image-text pairs (BLIP-LAION), each read or
drawn with probability 1/2, to 7 million interleaved documents (MMC4-core). All lengths are scaled by one
factor, that of the slot of a picture that is drawn and read: 49 positions stand for 324. BOS and EOS are not.

    MMC4-core        29.9 million pictures and 2.4 billion tokens in 7.3 million documents, 4.1 and 329 on the
                     average (README of github.com/allenai/mmc4, version 1.1)
    a caption        8.99 words, as BLIP writes them for LAION-COCO (arXiv:2411.07461, table 1)
    tokens a word    4/3, assumed
    the spread       assumed: of the distributions with these means those of greatest entropy, geometric for
                     pictures and exponential for tokens. `even` has no spread at all

The published code cuts a document before the first text or picture that does not fit into the context. So are
these, before either side of a comparison sees them; this code never cuts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.jsonl import write_documents
from dreamllm.world.render import render_image
from dreamllm.world.splits import sample_scene

NUM_VISUAL_TOKENS, NUM_DREAM_QUERIES = 36, 9
"""Of 256 and 64: whole squares in the same proportion."""
PUBLISHED_SLOT, SLOT = 256 + 64 + 4, NUM_VISUAL_TOKENS + NUM_DREAM_QUERIES + 4
"""Positions of a picture that is drawn and then read, with its four brackets."""
SCALE = SLOT / PUBLISHED_SLOT
PUBLISHED_CONTEXT = 2048
CONTEXT = round(PUBLISHED_CONTEXT * SCALE)
SHARE_OF_PAIRS = 10 / 17
CAPTION_WORDS = max(1, round(8.99 * 4 / 3 * SCALE))
MEAN_PICTURES, MEAN_TOKENS = 29.9 / 7.3, 2400 / 7.3
NUM_DIFFERENT_PICTURES = 32
ENDS = 2
"""BOS and EOS."""
LETTERS_A_TOKEN = 4
WORD = " red"
"""One token."""

Kind = Literal["read_pair", "draw_pair", "page"]
Spread = Literal["wide", "even"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What the interleaved documents are like before they are cut; means before scaling."""

    pictures: float = MEAN_PICTURES
    tokens: float = MEAN_TOKENS
    spread: Spread = "wide"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A document as numbers."""

    kind: Kind
    words: tuple[int, ...]
    """Before each picture; in a page one more stands after the last where there is text."""
    num_pictures: int

    @property
    def num_read(self) -> int:
        """Pictures that are read."""
        return 0 if self.kind == "draw_pair" else self.num_pictures

    @property
    def num_drawn(self) -> int:
        """Pictures that are drawn."""
        return 0 if self.kind == "read_pair" else self.num_pictures

    @property
    def positions(self) -> int:
        """Of its sequence."""
        slots = self.num_read * (NUM_VISUAL_TOKENS + 2) + self.num_drawn * (NUM_DREAM_QUERIES + 2)
        return ENDS + sum(self.words) + slots

    @property
    def size(self) -> int:
        """What shards would know of it: letters, and pictures as so many; a pair that is read is longer."""
        is_read = self.kind == "read_pair"
        return round(LETTERS_A_TOKEN * sum(self.words) / SCALE) + 1200 * self.num_pictures + is_read

    @property
    def labels(self) -> int:
        """Words, EOS and decisions to draw; a pair that is drawn has none."""
        return 0 if self.kind == "draw_pair" else sum(self.words) + 1 + self.num_drawn


def outlines(pages: Pages, *, seed: int) -> Iterator[Outline]:
    """Documents of the mixture, without end."""
    rng = np.random.default_rng(seed)
    while True:
        if rng.random() < SHARE_OF_PAIRS:
            kind: Kind = "read_pair" if rng.random() < 0.5 else "draw_pair"
            yield Outline(kind=kind, words=(CAPTION_WORDS,), num_pictures=1)
        elif (page := _draw_page(pages, rng)).words:
            yield page


def _draw_page(pages: Pages, rng: np.random.Generator) -> Outline:
    """A page, cut to the context; empty where the text before the first picture is longer."""
    if pages.spread == "wide":
        num_pictures, tokens = int(rng.geometric(1 / pages.pictures)), rng.exponential(pages.tokens)
    else:
        num_pictures = int(pages.pictures + rng.random())  # the two whole numbers around the mean
        tokens = pages.tokens
    num_words = max(1, round(tokens * SCALE))
    ends = np.sort(rng.integers(1, num_words + 1, size=num_pictures))  # a picture follows some text
    words: list[int] = []
    room, kept = CONTEXT - ENDS, 0
    for size in np.diff([0, *ends, num_words]).tolist():
        if size > room:
            break
        words.append(size)
        room -= size
        if kept == num_pictures or room < SLOT:
            break
        room -= SLOT
        kept += 1
    return Outline(kind="page", words=tuple(words), num_pictures=kept)


def write_stage2(path: Path, pages: Pages, *, num_documents: int, seed: int) -> Path:
    """Write so many documents of the mixture as JSONL."""
    rng = np.random.default_rng(seed)
    pictures = [render_image(sample_scene(rng, "train")) for _ in range(NUM_DIFFERENT_PICTURES)]
    drawn = zip(range(num_documents), outlines(pages, seed=seed), strict=False)
    return write_documents((_document(outline, n, pictures) for n, outline in drawn), path)


def _document(outline: Outline, number: int, pictures: Sequence[PILImage.Image]) -> Document:
    is_page, is_read = outline.kind == "page", outline.kind == "read_pair"
    texts = [Text(text=WORD * size, learn=outline.kind != "draw_pair") for size in outline.words]
    images = [
        Image(source=pictures[(number + n) % len(pictures)], learn=not is_read)
        for n in range(outline.num_pictures)
    ]
    parts: list[Part] = []
    if is_page:
        for n, text in enumerate(texts):
            parts += [text] if text.text else []
            parts += images[n : n + 1]
    else:
        parts = [*images, *texts] if is_read else [*texts, *images]
    return Document(parts=tuple(parts), id=f"{outline.kind}-{number}-{outline.positions}")
