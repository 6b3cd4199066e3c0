"""What a generator says while it writes a document, and the fold that makes the document of it.

A stream is any run of text and pictures, then `Finished`. A picture is `ImageStarted`, any number of
`ImagePreview`, then `ImageReady`; nothing stands between them. Pictures count up from 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from PIL import Image as PILImage

from dreamllm.document.document import Image, Part, Role, Text
from dreamllm.errors import DocumentError

FinishReason = Literal["end", "length", "image_limit", "cancelled"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """A picture is about to be drawn."""

    index: int
    """Pictures of this stream before it."""


@dataclass(frozen=True, slots=True, eq=False)
class ImagePreview:
    """A picture as far as it has been drawn."""

    index: int
    image: PILImage.Image
    step: int
    """Denoising steps done, 0 to num_steps."""
    num_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class ImageReady:
    """A finished picture."""

    index: int
    image: PILImage.Image


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing follows."""

    reason: FinishReason
    """`end`: the model ended it; `length`, `image_limit`: a limit did; `cancelled`: the caller did."""


Event = TextDelta | ImageStarted | ImagePreview | ImageReady | Finished


def fold(events: Iterable[Event], *, role: Role | None = None) -> tuple[Part, ...]:
    """The parts that a stream, or the beginning of one, has written; adjacent pieces of text are one part.

    A picture that was started and not finished is left out: the stream is still running, or was cancelled.

    Raises:
        DocumentError: the events stand in an order that no generator can mean.
    """
    parts: list[Part] = []
    pieces: list[str] = []
    num_ready = 0
    drawing: int | None = None
    finished: Finished | None = None

    def close_text() -> None:
        if text := "".join(pieces):
            parts.append(Text(text=text, role=role))
        pieces.clear()

    for position, event in enumerate(events):
        if problem := _problem(event, num_ready=num_ready, drawing=drawing, finished=finished):
            raise DocumentError(
                f"event {position}, {_shown(event)}, cannot stand there: {problem}; "
                "pass the events of one stream, all of them, in the order they came"
            )
        match event:
            case TextDelta(text):
                pieces.append(text)
            case ImageStarted(index):
                drawing = index
            case ImageReady():
                close_text()
                parts.append(Image(source=event.image, role=role))
                num_ready, drawing = num_ready + 1, None
            case Finished():
                finished = event
    close_text()
    return tuple(parts)


def _problem(event: Event, *, num_ready: int, drawing: int | None, finished: Finished | None) -> str | None:
    """Why the event cannot come next; None if it can."""
    if finished is not None:
        return f"the stream was finished ({finished.reason}), expected nothing more"
    match event:
        case ImageStarted(index) if drawing is None:
            return None if index == num_ready else f"expected picture {num_ready} to start"
        case ImagePreview() | ImageReady():
            if event.index != drawing:
                return "no picture was started" if drawing is None else f"picture {drawing} is being drawn"
            if isinstance(event, ImagePreview) and not 0 <= event.step <= event.num_steps:
                return f"expected a step from 0 to {event.num_steps}"
            return None
        case Finished("cancelled"):
            return None
    return None if drawing is None else f"picture {drawing} is being drawn, expected its ImageReady"


def _shown(event: Event) -> str:
    match event:
        case TextDelta(text):
            return f"TextDelta({text[:40]!r})"
        case ImagePreview():
            return f"ImagePreview(index={event.index}, step={event.step}, num_steps={event.num_steps})"
        case ImageReady():
            return f"ImageReady(index={event.index})"
    return repr(event)
