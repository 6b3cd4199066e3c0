"""Scenes told wrongly in one attribute: held against the truth, they show whether a word is heard."""

from dataclasses import replace

import numpy as np

from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene
from dreamllm.world.splits import choice

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": SIZES,
    "place": PLACES,
    "background": tuple(BACKGROUNDS),
}


def with_wrong(scene: Scene, name: str, rng: np.random.Generator) -> Scene:
    """A one-object scene with another value of the attribute, all other values equally likely."""
    if name == "background":
        other = choice(rng, [b for b in BACKGROUNDS if b != scene.background])
        return Scene(scene.objects, other)
    thing = scene.objects[0]
    wrong = choice(rng, [value for value in ATTRIBUTES[name] if value != getattr(thing, name)])
    return Scene((replace(thing, **{name: wrong}),), scene.background)
