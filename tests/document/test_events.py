"""A stream of events folds into the parts of a document, and an impossible order is refused."""

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import (
    Event,
    Finished,
    ImagePreview,
    ImageReady,
    ImageStarted,
    TextDelta,
    fold,
)
from dreamllm.errors import DocumentError

PICTURE = PILImage.new("RGB", (2, 2))


def picture_events(index: int, num_previews: int = 0) -> list[Event]:
    previews = [ImagePreview(index, PICTURE, step + 1, num_previews) for step in range(num_previews)]
    return [ImageStarted(index), *previews, ImageReady(index, PICTURE)]


def test_adjacent_deltas_are_one_text_and_pictures_divide_them() -> None:
    final = PILImage.new("RGB", (3, 3))
    events = [
        TextDelta("A red"),
        TextDelta(""),
        TextDelta(" circle."),
        ImageStarted(0),
        ImagePreview(0, PICTURE, 1, 2),
        ImageReady(0, final),
        TextDelta("Done."),
        Finished("end"),
    ]

    parts = fold(events, role="assistant")

    assert parts[0] == Text(text="A red circle.", role="assistant")
    assert isinstance(parts[1], Image)
    assert (parts[1].source, parts[1].role) == (final, "assistant")
    assert parts[2] == Text(text="Done.", role="assistant")
    assert len(parts) == 3


@settings(max_examples=40, deadline=None)
@given(runs=st.lists(st.text(max_size=4) | st.integers(0, 2), max_size=6))
def test_every_beginning_of_a_stream_folds_to_a_beginning_of_its_document(runs: list[str | int]) -> None:
    events: list[Event] = []
    num_pictures = 0
    for run in runs:
        if isinstance(run, str):
            events += [TextDelta(character) for character in run]
        else:
            events += picture_events(num_pictures, run)
            num_pictures += 1
    events.append(Finished("end"))

    whole = Document(parts=fold(events))

    assert whole.text == "".join(run if isinstance(run, str) else "\n\n" for run in runs).strip()
    assert len(whole.images) == num_pictures
    for stop in range(len(events)):
        beginning = Document(parts=fold(events[:stop]))
        assert whole.text.startswith(beginning.text)
        assert len(beginning.images) <= num_pictures


def test_a_cancelled_picture_is_left_out() -> None:
    assert fold([TextDelta("a"), ImageStarted(0), Finished("cancelled")]) == (Text(text="a"),)


def test_no_events_are_no_parts() -> None:
    assert fold([]) == fold([Finished("length")]) == ()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            [Finished("end"), TextDelta("a")],
            "event 1, TextDelta.'a'., cannot .* finished .end., expected nothing",
        ),
        ([ImageStarted(1)], "expected picture 0 to start"),
        ([ImageReady(0, PICTURE)], "no picture was started"),
        ([ImagePreview(0, PICTURE, 1, 2)], "no picture was started"),
        ([ImageStarted(0), ImageStarted(1)], "picture 0 is being drawn"),
        ([ImageStarted(0), ImageReady(1, PICTURE)], "picture 0 is being drawn"),
        ([ImageStarted(0), TextDelta("a")], "picture 0 is being drawn, expected its ImageReady"),
        ([ImageStarted(0), Finished("end")], "picture 0 is being drawn"),
        ([ImageStarted(0), ImagePreview(0, PICTURE, 3, 2)], "expected a step from 0 to 2"),
        ([*picture_events(0), *picture_events(0)], "expected picture 1 to start"),
    ],
)
def test_an_impossible_order_is_refused(events: list[Event], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        fold(events)


@pytest.mark.parametrize("reason", ["end", "length", "image_limit", "cancelled"])
def test_every_reason_ends_a_stream(reason: Literal["end", "length", "image_limit", "cancelled"]) -> None:
    assert len(fold([*picture_events(0), Finished(reason)])) == 1
