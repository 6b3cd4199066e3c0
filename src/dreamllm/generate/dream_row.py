"""One document of DreamLLM under way. Its life:

READING prompt -> WRITING words -> DREAMING (queries are fed) -> WAITING for the picture to be drawn
                       ^                                               |
                       +------- LOOKING at its own picture <-----------+            ... -> done
"""

from dataclasses import dataclass
from enum import Enum, auto

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.document.events import FinishReason
from dreamllm.generate.rows import Row
from dreamllm.models.decoders.condition import Condition
from dreamllm.sequence.layout import SlotSizes


class DreamState(Enum):
    """Where a row stands between two steps."""

    READING = auto()
    WRITING = auto()
    DREAMING = auto()
    WAITING = auto()
    LOOKING = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class DreamRow(Row):
    """The books of one document. `length` counts the positions fed and those in the chunk to be fed next."""

    sizes: SlotSizes
    chunk: Float[Tensor, "T D"] | None = None
    """Embeddings to be fed in the next step; None while the row waits for its picture, and at its end."""
    state: DreamState = DreamState.READING
    condition: Condition | None = None
    """What to draw; set while WAITING."""

    @property
    def may_dream(self) -> bool:
        """Whether a picture is allowed, and there is room to see it and go on with a word."""
        return self._may_start_picture(self.sizes.dream_length + self.sizes.image_length + 1)

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
        """The model said a word; the row is done when that was the last one it may say."""
        self.state = DreamState.WRITING
        Row.write(self, token)

    def start_picture(self) -> None:
        """The model decided to draw (or was told to)."""
        self.state = DreamState.DREAMING
        Row.start_picture(self)

    def wait(self, condition: Condition) -> None:
        """The dream queries are read; the picture can be drawn."""
        self.state = DreamState.WAITING
        self.condition = condition

    def receive(self, image: PILImage.Image) -> None:
        """The picture is drawn; the row is done when it was all that was asked for."""
        self.state = DreamState.LOOKING
        self.condition = None
        Row.receive(self, image)

    def finish(self, reason: FinishReason) -> None:
        """Nothing more comes."""
        self.chunk = None
        Row.finish(self, reason)
