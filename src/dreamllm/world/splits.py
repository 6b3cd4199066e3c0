"""Which scenes may be trained on.

Some shape-colour pairs are never trained, so that a test can ask for combinations nobody has seen; of the
remaining scenes a tenth, chosen by a hash of the scene, is kept for tests. Every ingredient (VAE, CLIP,
language model, decoder, stages) draws its training scenes from the same split.
"""

import zlib
from typing import Literal

import numpy as np

from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene

Split = Literal["train", "test", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "test", "held_out")

HELD_OUT_PAIRS = frozenset(
    {("circle", "purple"), ("square", "yellow"), ("triangle", "blue"), ("star", "green"), ("cross", "pink")}
)
"""(shape, colour) pairs that occur in no training scene and no ordinary test scene."""

_TEST_SHARE = 10  # one scene in ten


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to; a pure function of the scene."""
    if any((o.shape, o.color) in HELD_OUT_PAIRS for o in scene.objects):
        return "held_out"
    return "test" if zlib.crc32(repr(scene).encode()) % _TEST_SHARE == 0 else "train"


def sample_scene(
    rng: np.random.Generator, split: Split = "train", *, num_objects: int | tuple[int, ...] = (1, 2, 3)
) -> Scene:
    """A random scene of a split, uniform over object counts given, then over scenes."""
    counts = (num_objects,) if isinstance(num_objects, int) else num_objects
    while True:
        scene = _any_scene(rng, int(rng.choice(counts)))
        if split == "held_out":
            scene = _with_held_out_pair(rng, scene)
        if split_of(scene) == split:
            return scene


def may_appear(scene: Scene, split: Split) -> bool:
    """Whether a later picture of a document of this split may show the scene.

    A training document holds training scenes only; a test document may pass through training scenes too.
    """
    found = split_of(scene)
    return found == "train" or split == "held_out" or found == split


def choice(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options, as a plain `str`."""
    return options[int(rng.integers(len(options)))]


def random_object(rng: np.random.Generator, place: str) -> Object:
    """An object with independent, uniform attributes."""
    return Object(
        place=place, shape=choice(rng, SHAPES), color=choice(rng, list(COLORS)), size=choice(rng, SIZES)
    )


def _any_scene(rng: np.random.Generator, num_objects: int) -> Scene:
    places = rng.permutation(len(PLACES))[:num_objects]
    return Scene(tuple(random_object(rng, PLACES[i]) for i in places), choice(rng, list(BACKGROUNDS)))


def _with_held_out_pair(rng: np.random.Generator, scene: Scene) -> Scene:
    pairs = sorted(HELD_OUT_PAIRS)
    shape, color = pairs[int(rng.integers(len(pairs)))]
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    changed = Object(place=thing.place, shape=shape, color=color, size=thing.size)
    return Scene((*scene.objects[:index], changed, *scene.objects[index + 1 :]), scene.background)
