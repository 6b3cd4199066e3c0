"""Scene -> words: captions in three styles, questions with exact answers, sentences of change.

    short  "A red circle."
    full   "A small red circle at the top left on a white background."
    long   a narrative of several sentences, longer than the context of a CLIP text encoder

`reading.py` is the inverse: words -> facts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene
from dreamllm.world.splits import choice

CaptionStyle = Literal["short", "full", "long"]
CAPTION_STYLES: tuple[CaptionStyle, ...] = ("short", "full", "long")

QuestionKind = Literal["exist", "count", "color", "shape", "size", "place", "background", "relation"]
QUESTION_KINDS: tuple[QuestionKind, ...] = (
    "exist",
    "count",
    "color",
    "shape",
    "size",
    "place",
    "background",
    "relation",
)
NUMBERS = ("zero", "one", "two", "three")
INVERTED_SHARE = 0.3
"""Share of full captions, of those with a generator, that begin with the background."""
NUM_NARRATIVE_FORMS = 3
"""Wordings of an object in a narrative, equally likely."""


@dataclass(frozen=True, slots=True)
class QA:
    """A question about a scene and its exact answer."""

    kind: QuestionKind
    question: str
    note: str
    """The question in as few words as will do, what it is about last: "color top left"."""
    answer: str


def an(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(words: str) -> str:
    """A sentence: capital first letter, full stop."""
    return f"{words[0].upper()}{words[1:]}."


def listing(items: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def phrase(thing: Object, *, full: bool = True) -> str:
    """ "a small red circle at the top left", or "a red circle"."""
    if not full:
        return an(f"{thing.color} {thing.shape}")
    return f"{an(f'{thing.size} {thing.color} {thing.shape}')} at the {thing.place}"


def caption(scene: Scene, style: CaptionStyle, rng: np.random.Generator | None = None) -> str:
    """A caption; with `rng` the order of objects and the wording vary, without it they are canonical."""
    things = list(scene.objects)
    if rng is not None:
        things = [things[i] for i in rng.permutation(len(things))]
    if style == "short":
        return sentence(listing([phrase(o, full=False) for o in things]))
    if style == "full":
        words = listing([phrase(o) for o in things])
        if rng is not None and rng.random() < INVERTED_SHARE:
            return f"On {an(scene.background)} background, there is {words}."
        return sentence(f"{words} on {an(scene.background)} background")
    return _narrative(scene, things, rng)


def _narrative(scene: Scene, things: list[Object], rng: np.random.Generator | None) -> str:
    number = NUMBERS[len(things)]
    sentences = [
        f"The picture has {an(scene.background)} background.",
        f"It shows {number} {'shape' if len(things) == 1 else 'shapes'}.",
    ]
    for thing in things:
        form = 0 if rng is None else int(rng.integers(NUM_NARRATIVE_FORMS))
        if form == 0:
            sentences.append(
                f"At the {thing.place} there is {an(thing.shape)}. "
                f"It is {thing.size} and its color is {thing.color}."
            )
        elif form == 1:
            sentences.append(
                f"The {thing.place} holds {an(f'{thing.size} {thing.shape}')}. "
                f"The color of this shape is {thing.color}."
            )
        else:
            sentences.append(
                f"{an(thing.color).capitalize()} shape stands at the {thing.place}. "
                f"This shape is {an(f'{thing.size} {thing.shape}')}."
            )
    empty = [place for place in PLACES if place not in {o.place for o in things}]
    place = empty[0] if rng is None else choice(rng, empty)
    sentences.append(f"Nothing is at the {place}.")
    return " ".join(sentences)


# ---- questions ---------------------------------------------------------------------------------------


def question(scene: Scene, kind: QuestionKind, rng: np.random.Generator) -> QA | None:
    """A random question of a kind, or None where the scene allows none (a relation needs two objects)."""
    return _QUESTIONS[kind](scene, rng)


def _exist(scene: Scene, rng: np.random.Generator) -> QA:
    present = {(o.color, o.shape) for o in scene.objects}
    if rng.random() < 0.5:
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        color, shape = thing.color, thing.shape
    else:
        color, shape = _absent_pair(scene, present, rng)
    answer = "yes" if (color, shape) in present else "no"
    return QA("exist", f"Is there {an(f'{color} {shape}')}?", f"any {color} {shape}", answer)


def _absent_pair(scene: Scene, present: set[tuple[str, str]], rng: np.random.Generator) -> tuple[str, str]:
    """A pair that is not there; one of its halves usually is, so that only binding answers the question."""
    while True:
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        kind = rng.random()
        if kind < 0.4 and len(scene.objects) > 1:
            other = scene.objects[int(rng.integers(len(scene.objects)))]
            pair = (thing.color, other.shape)
        elif kind < 0.7:
            pair = (choice(rng, list(COLORS)), thing.shape)
        else:
            pair = (thing.color, choice(rng, SHAPES))
        if pair not in present:
            return pair


def _count(scene: Scene, rng: np.random.Generator) -> QA:
    kind = int(rng.integers(3))
    if kind == 0:
        return QA("count", "How many shapes are there?", "number shapes", NUMBERS[len(scene.objects)])
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    if kind == 1:
        color = thing.color if rng.random() < 0.8 else choice(rng, list(COLORS))
        number = sum(o.color == color for o in scene.objects)
        return QA("count", f"How many {color} shapes are there?", f"number {color}", NUMBERS[number])
    shape = thing.shape if rng.random() < 0.8 else choice(rng, SHAPES)
    number = sum(o.shape == shape for o in scene.objects)
    return QA("count", f"How many {plural(shape)} are there?", f"number {plural(shape)}", NUMBERS[number])


def plural(shape: str) -> str:
    """ "circles", "crosses"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _color(scene: Scene, rng: np.random.Generator) -> QA:
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    unique = sum(o.shape == thing.shape for o in scene.objects) == 1
    if unique and rng.random() < 0.5:
        return QA("color", f"What color is the {thing.shape}?", f"color {thing.shape}", thing.color)
    return QA("color", f"What color is the shape at the {thing.place}?", f"color {thing.place}", thing.color)


def _shape(scene: Scene, rng: np.random.Generator) -> QA:
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    unique = sum(o.color == thing.color for o in scene.objects) == 1
    if unique and rng.random() < 0.5:
        return QA("shape", f"What shape is {thing.color}?", f"shape {thing.color}", thing.shape)
    return QA("shape", f"What shape is at the {thing.place}?", f"shape {thing.place}", thing.shape)


def _size(scene: Scene, rng: np.random.Generator) -> QA:
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    name = _name(scene, thing)
    if name is not None and rng.random() < 0.5:
        return QA("size", f"What size is the {name}?", f"size {name}", thing.size)
    return QA("size", f"What size is the shape at the {thing.place}?", f"size {thing.place}", thing.size)


def _place(scene: Scene, rng: np.random.Generator) -> QA | None:
    named = [(o, name) for o in scene.objects if (name := _name(scene, o)) is not None]
    if not named:
        return None
    thing, name = named[int(rng.integers(len(named)))]
    return QA("place", f"Where is the {name}?", f"place {name}", thing.place)


def _background(scene: Scene, rng: np.random.Generator) -> QA:
    return QA("background", "What color is the background?", "color background", scene.background)


def _relation(scene: Scene, rng: np.random.Generator) -> QA | None:
    named = [(o, name) for o in scene.objects if (name := _name(scene, o)) is not None]
    if len(named) < 2:
        return None
    (a, name_a), (b, name_b) = (named[i] for i in rng.permutation(len(named))[:2])
    axes = [axis for axis, differs in (("x", a.column != b.column), ("y", a.row != b.row)) if differs]
    if choice(rng, axes) == "x":
        word = choice(rng, ["left of", "right of"])
        true = (a.column < b.column) == (word == "left of")
    else:
        word = choice(rng, ["above", "below"])
        true = (a.row < b.row) == (word == "above")
    answer = "yes" if true else "no"
    return QA("relation", f"Is the {name_a} {word} the {name_b}?", f"{name_a} {word} {name_b}", answer)


def _name(scene: Scene, thing: Object) -> str | None:
    """ "red circle" where that names one object only."""
    same = sum((o.color, o.shape) == (thing.color, thing.shape) for o in scene.objects)
    return f"{thing.color} {thing.shape}" if same == 1 else None


_QUESTIONS = {
    "exist": _exist,
    "count": _count,
    "color": _color,
    "shape": _shape,
    "size": _size,
    "place": _place,
    "background": _background,
    "relation": _relation,
}

ANSWERS: dict[QuestionKind, tuple[str, ...]] = {
    "exist": ("yes", "no"),
    "count": NUMBERS,
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
    "background": tuple(BACKGROUNDS),
    "relation": ("yes", "no"),
}
"""Every possible answer by kind: the reciprocal of the count is chance level."""
