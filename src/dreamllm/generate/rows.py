"""What is the same for every document under way: its words, its events, and the limits it keeps.

A row only keeps books; the engine feeds it and tells it what came out. Which states it goes through is the
family's: `dream_row.py` (DreamLLM) and `code_row.py` (JAM).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image as PILImage

from dreamllm.document.events import Event, Finished, FinishReason, ImageReady, ImageStarted, TextDelta
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.prompts import Prompt
from dreamllm.generate.sampling import row_generator

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""


class TextRun:
    """The words between two pictures, given out as they become certain.

    A token may end inside a character, and some decoders treat the beginning of a text apart; so the whole
    run is decoded each time, and only what no later token can change is given out.
    """

    def __init__(self, decode: Callable[[list[int]], str], *, prefix: str) -> None:
        """`prefix`, the template's space before an answer, is dropped once from the beginning."""
        self.ids: list[int] = []
        self._decode = decode
        self._prefix = prefix
        self._num_given = 0

    def push(self, token: int) -> str:
        """Take a token and return the new text that is certain, which may be none."""
        self.ids.append(token)
        text = self._decode(self.ids)
        if self._prefix.startswith(text):  # it may yet turn out to be the prefix
            return ""
        return self._give(text.rstrip(REPLACEMENT))

    def close(self) -> str:
        """The rest; no token follows."""
        return self._give(self._decode(self.ids))

    def _give(self, text: str) -> str:
        text = text.removeprefix(self._prefix)
        new = text[self._num_given :]
        self._num_given = max(self._num_given, len(text))
        return new


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """The books of one document."""

    prompt: Prompt
    cache_row: int
    options: GenerationOptions
    max_length: int
    """Positions the row may use."""
    decode: Callable[[list[int]], str]
    text: TextRun = field(init=False)
    generator: torch.Generator = field(init=False)
    """For the words."""
    length: int = 0
    """Positions fed, and those to be fed next."""
    num_tokens: int = 0
    num_images: int = 0
    is_done: bool = False
    events: list[Event] = field(default_factory=list)
    """Said but not yet collected."""

    def __post_init__(self) -> None:
        self.text = TextRun(self.decode, prefix=self.prompt.first_prefix)
        self.generator = row_generator(self.options.seed, self.prompt.name, "text")

    @property
    def index(self) -> int:
        """The document's place in the caller's list."""
        return self.prompt.index

    def write(self, token: int) -> None:
        """The model said a word; the row is done when that was the last one it may say."""
        self.num_tokens += 1
        self._say(self.text.push(token))
        if self.num_tokens == self.options.max_new_tokens or self.length + 1 >= self.max_length:
            self.finish("length")

    def start_picture(self) -> None:
        """The model decided to draw (or was told to)."""
        self._close_run()
        self.events.append(ImageStarted(self.num_images))

    def receive(self, image: PILImage.Image) -> None:
        """The picture is drawn; the row is done when it was all that was asked for."""
        self.events.append(ImageReady(self.num_images, image))
        self.num_images += 1
        if self.options.mode == "image":
            self.finish("image_limit")

    def finish(self, reason: FinishReason) -> None:
        """Nothing more comes."""
        self._close_run()
        self.is_done = True
        self.events.append(Finished(reason))

    def collect(self) -> list[Event]:
        """Hand over the events said since the last call."""
        events, self.events = self.events, []
        return events

    def _may_start_picture(self, length: int) -> bool:
        """Whether pictures are allowed, one is left under the cap, and `length` positions are."""
        return (
            self.options.mode == "interleaved"
            and self.num_images < self.options.max_images
            and self.max_length - self.length >= length
        )

    def _say(self, text: str) -> None:
        if text:
            self.events.append(TextDelta(text))

    def _close_run(self) -> None:
        self._say(self.text.close())
        self.text = TextRun(self.decode, prefix=self.prompt.next_prefix)
