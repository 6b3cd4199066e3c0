"""Guides: how to draw a scene, one object a step, a picture after each step.

guide, ask_guide   one wording
ask_howto          the same in many wordings, as people write them: for instruction tuning (section 6 of the
                   JAM notes: a title, numbered steps, one to three pictures, an ending)
"""

import numpy as np

from dreamllm.world.document_parts import DocumentOptions, Made, asked, illustrated
from dreamllm.world.language import NUMBERS, CaptionStyle, an, caption, listing, phrase
from dreamllm.world.scene import Object, Scene
from dreamllm.world.splits import Split, choice, may_appear, sample_scene

HOWTO_REQUESTS = (
    "How do I draw this? {caption}",
    "Teach me to draw this. {caption}",
    "Show me the steps to draw this. {caption}",
    "Write a guide with pictures for this. {caption}",
    "I want to draw this, what do I do? {caption}",
)
HOWTO_TITLES = (
    "How to draw {things}.",
    "How to make a picture of {things}.",
    "A guide to drawing {things}.",
    "{Number} {steps} to draw {things}.",
)
HOWTO_FIRST = (
    "Step one: take {ground} background and draw {thing}.",
    "Step one: begin with {ground} background and put {thing} on it.",
    "Step one: paint {ground} background, then draw {thing}.",
)
HOWTO_NEXT = (
    "Step {number}: add {thing}.",
    "Step {number}: now draw {thing}.",
    "Step {number}: put {thing} beside the rest.",
)
HOWTO_ENDINGS = (
    "The drawing is done.",
    "Now the picture is complete.",
    "That was the last step.",
    "You are done.",
)


def guide(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """How to draw the scene, or another one as large where a step would leave the split."""
    things, scenes = _steps(rng, scene, split)
    sentences = [f"Step one: take a {scenes[0].background} background and draw {phrase(things[0])}."]
    sentences += [
        f"Step {NUMBERS[i + 1]}: add {phrase(thing)}." for i, thing in enumerate(things[1:], start=1)
    ]
    title = f"How to draw {listing([phrase(o, full=False) for o in things])}."
    return illustrated(title, sentences, scenes, "The drawing is done."), scenes, {}


def _steps(rng: np.random.Generator, scene: Scene, split: Split) -> tuple[list[Object], list[Scene]]:
    """Objects in the order in which they are drawn, and the scene after each of them."""
    things = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    scenes = [Scene(tuple(things[: i + 1]), scene.background) for i in range(len(things))]
    if not all(may_appear(s, split) for s in scenes):
        return _steps(rng, sample_scene(rng, split, num_objects=len(things)), split)
    return things, scenes


def ask_guide(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """A guide on request."""
    parts, scenes, metadata = guide(rng, scene, split, options)
    request = f"Show step by step how to draw this. {caption(scenes[-1], 'full', rng)}"
    return asked(parts, request), scenes, metadata


def ask_howto(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """A guide on request, request and answer in one of many wordings."""
    things, scenes = _steps(rng, scene, split)
    style: CaptionStyle = "full" if rng.random() < 0.75 else "long"
    request = choice(rng, HOWTO_REQUESTS).format(caption=caption(scenes[-1], style, rng))
    number = len(things)
    title = choice(rng, HOWTO_TITLES).format(
        things=listing([phrase(o, full=False) for o in things]),
        Number=NUMBERS[number].capitalize(),
        steps="step" if number == 1 else "steps",
    )
    first = choice(rng, HOWTO_FIRST).format(ground=an(scenes[0].background), thing=phrase(things[0]))
    following = choice(rng, HOWTO_NEXT)  # one wording a guide, as one author writes
    sentences = [first] + [
        following.format(number=NUMBERS[i + 1], thing=phrase(thing)) for i, thing in enumerate(things[1:], 1)
    ]
    parts = illustrated(title, sentences, scenes, choice(rng, HOWTO_ENDINGS))
    return asked(parts, request), scenes, {"style": style}
