"""One document of JAM under way. Its life:

        .--------- CLOSED (a closing `<break>` is read) <---------.
        v                |                                        |
WRITING words -> DRAWING G codes -> CLOSING (`<break>` or EOS) ---'                  ... -> done
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from PIL import Image as PILImage

from dreamllm.document.document import Document
from dreamllm.document.events import Event
from dreamllm.generate.draw_codes import Picture
from dreamllm.generate.engine import continued
from dreamllm.generate.rows import Row
from dreamllm.sequence.code_tokens import CodeTokens


class CodeState(Enum):
    """What the next token of a row is chosen from."""

    WRITING = auto()
    """Words, EOS, and `<break>` to draw a picture."""
    DRAWING = auto()
    """Codes."""
    CLOSING = auto()
    """`<break>`, if something follows the picture, or EOS."""
    CLOSED = auto()
    """As WRITING, but no EOS: something was to follow."""


@dataclass(slots=True, kw_only=True, eq=False)
class CodeRow(Row):
    """The books of one document."""

    tokens: CodeTokens
    has_tokenizer: bool
    """Whether codes can become a picture."""
    state: CodeState = CodeState.WRITING
    ids: list[int] = field(default_factory=list)
    """Of the document, those to be fed next included; codes of a picture under way are not."""
    chunks: dict[int, list[int]] = field(default_factory=dict)
    """Ids to be fed next, by cache row."""
    picture: Picture | None = None
    """Set while DRAWING."""
    said: list[Event] = field(default_factory=list)
    """All events since the prompt."""

    @property
    def may_draw(self) -> bool:
        """Whether a picture is allowed, and there is room for it and the `<break>` on both sides."""
        return self.has_tokenizer and self._may_start_picture(self.tokens.picture_length)

    @property
    def may_go_on(self) -> bool:
        """Whether there is room for a closing `<break>` and a word."""
        return self.length + 2 <= self.max_length

    @property
    def document(self) -> Document:
        """The prompt with what has been said after it."""
        return continued(self.prompt.document, [*self.said, *self.events])

    def read_prompt(self) -> None:
        """Set the prompt as what is fed next; where it ends decides what may come."""
        ids = self.prompt.sequence.input_ids.tolist()
        if ids[-1] >= self.tokens.first_code:
            self.state = CodeState.CLOSING
        elif ids[-1] == self.tokens.break_:
            self.state = CodeState.CLOSED
        self.feed(ids)

    def feed(self, ids: list[int]) -> None:
        """The document goes on with these ids; the next step reads them."""
        self.ids += ids
        self.length = len(self.ids)
        self.chunks = {self.cache_row: ids}

    def write(self, token: int) -> None:
        """The model said a word; the row is done when that was the last one it may say."""
        self.state = CodeState.WRITING
        Row.write(self, token)
        if not self.is_done:
            self.feed([token])

    def begin_picture(self, picture: Picture, other_side: list[int]) -> None:
        """The opening `<break>` is the last of `ids`; candidates and the other side read their beginnings."""
        self.state = CodeState.DRAWING
        self.picture = picture
        for cache_row in picture.conditional[1:]:
            self.chunks[cache_row] = self.ids
        for cache_row in picture.unconditional:
            self.chunks[cache_row] = other_side
        self.start_picture()

    def draw(self, codes: list[int]) -> None:
        """Take one code of every candidate; both sides read it next, unless it was the last."""
        assert self.picture is not None
        for drawn, code in zip(self.picture.codes, codes, strict=True):
            drawn.append(code)
        self.chunks = {}
        if not self.picture.is_complete:
            ids = [self.tokens.first_code + code for code in codes]
            for cache_rows in (self.picture.conditional, self.picture.unconditional):
                for cache_row, token in zip(cache_rows, ids, strict=False):  # there may be no other side
                    self.chunks[cache_row] = [token]

    def end_picture(self, best: int, image: PILImage.Image) -> list[int]:
        """Keep one candidate, whose cache row is the document's from now on; returns the rows to release."""
        assert self.picture is not None
        picture, self.picture = self.picture, None
        self.cache_row = picture.conditional.pop(best)
        self.state = CodeState.CLOSING
        ids = [self.tokens.first_code + code for code in picture.codes[best]]
        self.feed(ids)
        self.chunks = {self.cache_row: ids[-1:]}  # the others were read while they were drawn
        self.receive(image)
        return picture.conditional + picture.unconditional

    def collect(self) -> list[Event]:
        """Hand over the events said since the last call."""
        events = Row.collect(self)
        self.said += events
        return events
