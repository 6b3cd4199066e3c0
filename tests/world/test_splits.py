"""Splits: a pure function of the scene, a tenth for tests, and pairs nobody trains on."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dreamllm.world.scene import COLORS, SHAPES, Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, SPLITS, Split, may_appear, sample_scene, split_of


def test_each_shape_and_five_colors_have_one_held_out_pair() -> None:
    assert sorted(shape for shape, _ in HELD_OUT_PAIRS) == sorted(SHAPES)
    assert len({color for _, color in HELD_OUT_PAIRS} & set(COLORS)) == len(HELD_OUT_PAIRS) == 5


def test_a_scene_with_a_held_out_pair_is_held_out_whatever_else_it_shows() -> None:
    pair = Object("top left", "circle", "purple", "small")
    other = Object("top right", "star", "red", "large")

    assert split_of(Scene((pair,), "white")) == "held_out"
    assert split_of(Scene((other, pair), "black")) == "held_out"
    assert split_of(Scene((other,), "black")) in ("train", "test")


def test_a_tenth_of_the_other_scenes_is_for_tests() -> None:
    """0.1 +- 4 standard deviations of a share of 4000."""
    rng = np.random.default_rng(0)
    others = (s for s in (_uniform(rng) for _ in range(6000)) if split_of(s) != "held_out")
    found = Counter(split_of(scene) for scene, _ in zip(others, range(4000), strict=False))

    assert abs(found["test"] / found.total() - 0.1) < 0.019


def _uniform(rng: np.random.Generator) -> Scene:
    def pick(options: object) -> str:
        values = list(options)  # type: ignore[call-overload]
        return values[rng.integers(len(values))]

    return Scene(
        (
            Object("top left", pick(SHAPES), pick(COLORS), "small"),
            Object("bottom left", pick(SHAPES), pick(COLORS), "large"),
        ),
        "gray",
    )


def test_the_split_of_a_scene_is_the_same_in_every_process() -> None:
    """Unlike Python's own hash, which is salted."""
    star, circle = (Scene((Object("top left", s, "red", "small"),), "white") for s in ("star", "circle"))
    program = f"from dreamllm.world.splits import *; print(split_of({star!r}), split_of({circle!r}))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [split_of(star), split_of(circle)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_samples_belong_to_their_split_and_have_the_asked_number_of_objects(
    split: Split, num_objects: int
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng, split, num_objects=num_objects)
        assert split_of(scene) == split
        assert len(scene.objects) == num_objects


def test_samples_are_uniform_over_the_asked_numbers_of_objects() -> None:
    """A third of 900 scenes has each number: +- 4 standard deviations."""
    rng = np.random.default_rng(0)
    found = Counter(len(sample_scene(rng).objects) for _ in range(900))

    assert all(abs(found[n] - 300) < 57 for n in (1, 2, 3))


def test_every_held_out_pair_is_sampled() -> None:
    rng = np.random.default_rng(0)
    seen = {
        (o.shape, o.color) for _ in range(200) for o in sample_scene(rng, "held_out", num_objects=1).objects
    }

    assert seen == HELD_OUT_PAIRS


def test_a_training_document_may_show_training_scenes_alone() -> None:
    rng = np.random.default_rng(0)
    train, test, held_out = (sample_scene(rng, split) for split in SPLITS)

    assert [may_appear(scene, "train") for scene in (train, test, held_out)] == [True, False, False]
    assert [may_appear(scene, "test") for scene in (train, test, held_out)] == [True, True, False]
    assert [may_appear(scene, "held_out") for scene in (train, test, held_out)] == [True, True, True]
