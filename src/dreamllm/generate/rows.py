"""One document under way: what it has been given, what it may do next, and what it says to the outside.

A row only keeps books; the generator feeds it and tells it what came out. Its life:

    READING prompt -> WRITING words -> DREAMING (queries are fed) -> WAITING for the picture to be drawn
                           ^                                               |
                           +------- LOOKING at its own picture <-----------+            ... -> DONE
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.document.events import Event, Finished, FinishReason, ImageReady, ImageStarted, TextDelta
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.decoders.condition import Condition
from dreamllm.sequence.layout import SlotSizes

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""


class RowState(Enum):
    """Where a row stands between two steps."""

    READING = auto()
    WRITING = auto()
    DREAMING = auto()
    WAITING = auto()
    LOOKING = auto()
    DONE = auto()


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
    """The books of one document. `length` counts the positions fed and those in the chunk to be fed next."""

    index: int
    """The document's place in the caller's list."""
    cache_row: int
    name: str
    """What its randomness is derived from, with the seed."""
    options: GenerationOptions
    sizes: SlotSizes
    max_length: int
    """Positions the row may use."""
    decode: Callable[[list[int]], str]
    text: TextRun
    next_prefix: str
    """What the template puts before words that follow a picture."""
    generator: torch.Generator
    """For the words."""
    chunk: Float[Tensor, "T D"] | None = None
    """Embeddings to be fed in the next step; None while the row waits for its picture."""
    length: int = 0
    state: RowState = RowState.READING
    num_tokens: int = 0
    num_images: int = 0
    condition: Condition | None = None
    """What to draw; set while WAITING."""
    events: list[Event] = field(default_factory=list)
    """Said but not yet collected."""

    @property
    def may_dream(self) -> bool:
        """Whether pictures are allowed, one is left under the cap, and there is room to see it and go on."""
        room = self.max_length - self.length
        return (
            self.options.mode == "interleaved"
            and self.num_images < self.options.max_images
            and room >= self.sizes.dream_length + self.sizes.image_length + 1
        )

    def feed(self, chunk: Float[Tensor, "T D"]) -> None:
        """Set what the next step reads."""
        self.chunk = chunk
        self.length += chunk.shape[0]

    def take_chunk(self) -> Float[Tensor, "T D"]:
        """Hand over what the next step reads."""
        assert self.chunk is not None
        chunk, self.chunk = self.chunk, None
        return chunk

    def write(self, token: int) -> None:
        """The model said a word; the row is DONE when that was the last one it may say."""
        self.state = RowState.WRITING
        self.num_tokens += 1
        self._say(self.text.push(token))
        if self.num_tokens == self.options.max_new_tokens or self.length + 1 >= self.max_length:
            self.finish("length")

    def dream(self) -> None:
        """The model decided to draw (or was told to)."""
        self.state = RowState.DREAMING
        self._close_run()
        self.events.append(ImageStarted(self.num_images))

    def wait(self, condition: Condition) -> None:
        """The dream queries are read; the picture can be drawn."""
        self.state = RowState.WAITING
        self.condition = condition

    def receive(self, image: PILImage.Image) -> None:
        """The picture is drawn; the row is DONE when it was all that was asked for."""
        self.state = RowState.LOOKING
        self.condition = None
        self.events.append(ImageReady(self.num_images, image))
        self.num_images += 1
        if self.options.mode == "image":
            self.finish("image_limit")

    def finish(self, reason: FinishReason) -> None:
        """Nothing more comes."""
        self._close_run()
        self.state = RowState.DONE
        self.chunk = None
        self.events.append(Finished(reason))

    def collect(self) -> list[Event]:
        """Hand over the events said since the last call."""
        events, self.events = self.events, []
        return events

    def _say(self, text: str) -> None:
        if text:
            self.events.append(TextDelta(text))

    def _close_run(self) -> None:
        self._say(self.text.close())
        self.text = TextRun(self.decode, prefix=self.next_prefix)
