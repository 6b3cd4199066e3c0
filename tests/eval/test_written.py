"""Generated documents taken apart: claims about pictures, and decisions to draw."""

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.eval.written import Decisions, answer_of, claims, decisions, is_readable, picture_of, written
from dreamllm.world.documents import DocumentKind, make_document
from dreamllm.world.reading import Facts, read_text

PICTURE = Image(source=PILImage.new("RGB", (64, 64)))
CIRCLE = "A small red circle at the top left on a white background."


def parts(*contents: str | Image) -> list[Part]:
    return [Text(text=content) if isinstance(content, str) else content for content in contents]


def test_what_was_written_begins_after_the_prompt() -> None:
    prompt = Document(parts=(Text(text="Where is the star?", role="user"),))
    answered = Document(
        parts=(*prompt.parts, Text(text=" top ", role="assistant"), Text(text="left", role="assistant"))
    )

    assert answer_of(prompt, answered) == "top left"
    assert written(prompt, answered) == answered.parts[1:]
    assert answer_of(prompt, prompt) == ""


def test_the_picture_of_a_drawing_is_its_only_generated_part() -> None:
    prompt = Document(parts=(Text(text="Draw this.", role="user"),))
    drawn = Document(
        parts=(*prompt.parts, Image(source=PILImage.new("RGB", (4, 4), "red"), role="assistant"))
    )

    assert picture_of(prompt, drawn).getpixel((0, 0)) == (255, 0, 0)


def test_each_picture_is_claimed_by_all_text_before_it() -> None:
    found = claims(
        parts(
            f"Here are two pictures. {CIRCLE}",
            PICTURE,
            "Then, the circle at the top left turns blue.",
            PICTURE,
        )
    )

    assert [claim.facts for claim in found] == [
        read_text(CIRCLE),
        read_text("A small blue circle at the top left on a white background."),
    ]


def test_after_text_outside_the_grammar_nothing_is_known() -> None:
    document = parts(CIRCLE, PICTURE, "It rains.", PICTURE, CIRCLE, PICTURE)

    assert [claim.facts for claim in claims(document)] == [read_text(CIRCLE), None, None]
    assert not is_readable(document)
    assert is_readable(document[:2])


def test_a_picture_before_any_word_is_claimed_by_nothing() -> None:
    assert [claim.facts for claim in claims([PICTURE])] == [Facts()]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ((f"Here are two pictures. {CIRCLE}", PICTURE, "The end."), (1, 0, 0)),
        ((CIRCLE, "The end."), (0, 0, 1)),
        ((CIRCLE,), (0, 0, 1)),
        (("Here are two pictures.", PICTURE, CIRCLE, PICTURE), (1, 1, 0)),
        ((f"{CIRCLE} {CIRCLE}", PICTURE), (1, 0, 1)),
        ((CIRCLE, PICTURE, PICTURE), (1, 1, 0)),
        ((CIRCLE, PICTURE, "The end.", PICTURE), (1, 1, 0)),
        ((CIRCLE, PICTURE, "Nothing changes for a while.", PICTURE), (1, 1, 0)),
        (
            (CIRCLE, PICTURE, "Nothing changes for a while. Then, the background turns black.", PICTURE),
            (2, 0, 0),
        ),
        (("A small red circle at the top", PICTURE), (0, 1, 0)),
        ((f"{CIRCLE} And then", PICTURE), (0, 1, 1)),
        (("It rains.", PICTURE), (0, 1, 0)),
        ((), (0, 0, 0)),
    ],
)
def test_decisions_are_hits_false_ones_and_missed_ones(
    contents: tuple[str | Image, ...], expected: tuple[int, int, int]
) -> None:
    assert decisions(parts(*contents)) == Decisions(*expected)


@pytest.mark.parametrize("kind", ["story", "guide", "album", "ask_story", "ask_guide", "ask_album"])
def test_the_documents_of_the_world_decide_rightly_everywhere(kind: DocumentKind) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        document = make_document(kind, rng, split="test")
        told = [part for part in document if part.role != "user"]
        assert decisions(told) == Decisions(len(document.images), 0, 0)
        assert is_readable(told)
