"""Words for scenes: spelled as a person would spell them, and answered as a person would answer."""

import re
from collections import Counter

import numpy as np
import pytest

from dreamllm.world.language import (
    ANSWERS,
    CAPTION_STYLES,
    QA,
    QUESTION_KINDS,
    QuestionKind,
    an,
    caption,
    listing,
    plural,
    question,
)
from dreamllm.world.scene import Object, Scene
from dreamllm.world.splits import sample_scene

PAIR = Scene(
    (Object("bottom right", "square", "blue", "large"), Object("top left", "circle", "orange", "small")),
    "white",
)
NUMBERS = ("zero", "one", "two", "three")
SINGULAR = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "stars": "star",
    "crosses": "cross",
}


def true_answer(scene: Scene, asked: str) -> str:
    """The answer to a question, worked out from its words alone."""
    things = list(scene.objects)
    if asked == "What color is the background?":
        return scene.background
    if match := re.fullmatch(r"Is there an? (\w+) (\w+)\?", asked):
        return "yes" if match.groups() in {(o.color, o.shape) for o in things} else "no"
    if asked == "How many shapes are there?":
        return NUMBERS[len(things)]
    if match := re.fullmatch(r"How many (\w+) shapes are there\?", asked):
        return NUMBERS[len([o for o in things if o.color == match[1]])]
    if match := re.fullmatch(r"How many (\w+) are there\?", asked):
        return NUMBERS[len([o for o in things if o.shape == SINGULAR[match[1]]])]
    if match := re.fullmatch(r"What (color|shape|size) is the shape at the (.+)\?", asked):
        return str(getattr(only(o for o in things if o.place == match[2]), match[1]))
    if match := re.fullmatch(r"What shape is at the (.+)\?", asked):
        return only(o for o in things if o.place == match[1]).shape
    if match := re.fullmatch(r"What shape is (\w+)\?", asked):
        return only(o for o in things if o.color == match[1]).shape
    if match := re.fullmatch(r"What color is the (\w+)\?", asked):
        return only(o for o in things if o.shape == match[1]).color
    if match := re.fullmatch(r"What size is the (\w+) (\w+)\?", asked):
        return only(o for o in things if (o.color, o.shape) == match.groups()).size
    if match := re.fullmatch(r"Where is the (\w+) (\w+)\?", asked):
        return only(o for o in things if (o.color, o.shape) == match.groups()).place
    match = re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", asked)
    assert match is not None, asked
    a = only(o for o in things if (o.color, o.shape) == match.group(1, 2)).place.split()
    b = only(o for o in things if (o.color, o.shape) == match.group(4, 5)).place.split()
    holds = {
        "left of": (a[1], b[1]) == ("left", "right"),
        "right of": (a[1], b[1]) == ("right", "left"),
        "above": (a[0], b[0]) == ("top", "bottom"),
        "below": (a[0], b[0]) == ("bottom", "top"),
    }
    return "yes" if holds[match[3]] else "no"


def only(found: object) -> Object:
    (thing,) = list(found)  # type: ignore[call-overload]
    return thing


def asked(kind: QuestionKind, num: int = 300, seed: int = 0) -> list[tuple[Scene, QA]]:
    rng = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < num:
        scene = sample_scene(rng)
        qa = question(scene, kind, rng)
        if qa is not None:
            pairs.append((scene, qa))
    return pairs


def test_captions_read_as_written_by_hand() -> None:
    assert caption(PAIR, "short") == "An orange circle and a blue square."
    assert caption(PAIR, "full") == (
        "A small orange circle at the top left and a large blue square at the bottom right "
        "on a white background."
    )
    assert caption(PAIR, "long") == (
        "The picture has a white background. It shows two shapes. At the top left there is a circle. "
        "It is small and its color is orange. At the bottom right there is a square. It is large and its "
        "color is blue. Nothing is at the top right."
    )


def test_articles_lists_and_plurals_are_english() -> None:
    assert (an("orange star"), an("blue star")) == ("an orange star", "a blue star")
    assert (listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
    assert (plural("circle"), plural("cross")) == ("circles", "crosses")


def test_a_caption_without_a_generator_is_always_the_same_and_one_with_it_follows_the_seed() -> None:
    for style in CAPTION_STYLES:
        assert caption(PAIR, style) == caption(PAIR, style)
        first, again = (caption(PAIR, style, np.random.default_rng(3)) for _ in range(2))
        assert first == again


def test_wordings_of_a_caption_vary() -> None:
    rng = np.random.default_rng(0)

    assert len({caption(PAIR, "short", rng) for _ in range(50)}) == 2
    assert len({caption(PAIR, "full", rng) for _ in range(50)}) == 4
    assert len({caption(PAIR, "long", rng) for _ in range(500)}) == 2 * 3**2 * 2


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_every_answer_is_what_the_scene_says(kind: QuestionKind) -> None:
    for scene, qa in asked(kind):
        assert qa.kind == kind
        assert qa.answer == true_answer(scene, qa.question), (scene, qa)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_every_answer_is_listed_and_every_listed_answer_occurs(kind: QuestionKind) -> None:
    assert {qa.answer for _, qa in asked(kind)} == set(ANSWERS[kind])


@pytest.mark.parametrize("kind", ["exist", "relation"])
def test_yes_and_no_are_balanced(kind: QuestionKind) -> None:
    """Half of 1000 fair coins lies within 0.05 of a half in 99.8 % of cases."""
    answers = Counter(qa.answer for _, qa in asked(kind, num=1000))

    assert 0.45 < answers["yes"] / 1000 < 0.55


@pytest.mark.parametrize("kind", ["color", "shape", "size", "place", "background"])
def test_no_answer_is_worth_guessing(kind: QuestionKind) -> None:
    answers = Counter(qa.answer for _, qa in asked(kind, num=1000))

    assert max(answers.values()) / 1000 < 1.5 / len(ANSWERS[kind])


def test_a_single_object_has_no_relation() -> None:
    alone = Scene(PAIR.objects[:1], "white")

    assert question(alone, "relation", np.random.default_rng(0)) is None


def test_twins_are_never_asked_for_by_name() -> None:
    twins = Scene(
        (Object("top left", "star", "red", "small"), Object("top right", "star", "red", "large")), "gray"
    )
    rng = np.random.default_rng(0)

    assert question(twins, "place", rng) is None
    assert question(twins, "relation", rng) is None
    sizes = [question(twins, "size", rng) for _ in range(20)]
    assert all(qa is not None and "at the" in qa.question for qa in sizes)
