"""Scenes as values: what is allowed, one spelling per scene, JSON."""

import json
from itertools import permutations

import pytest

from dreamllm.world.scene import CELL_PX, MAX_OBJECTS, PICTURE_PX, PLACES, Object, Scene

CIRCLE = Object("top left", "circle", "red", "small")
STAR = Object("top right", "star", "blue", "large")
CROSS = Object("bottom left", "cross", "pink", "small")
SQUARE = Object("bottom right", "square", "cyan", "large")


def test_cells_tile_the_picture() -> None:
    cells = {
        (Object(place, "star", "red", "small").row, Object(place, "star", "red", "small").column)
        for place in PLACES
    }

    assert cells == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert 2 * CELL_PX == PICTURE_PX


def test_bottom_left_is_row_one_column_zero() -> None:
    assert (CROSS.row, CROSS.column) == (1, 0)


def test_the_order_in_which_objects_are_named_does_not_matter() -> None:
    scenes = {Scene(order, "gray") for order in permutations((CIRCLE, STAR, CROSS))}

    assert len(scenes) == 1
    assert scenes.pop().objects == (CIRCLE, STAR, CROSS)


def test_json_and_back_is_the_same_scene() -> None:
    scene = Scene((SQUARE, CIRCLE), "brown")

    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_json_holds_plain_words_in_the_order_of_places() -> None:
    assert Scene((STAR, CIRCLE), "white").to_json() == {
        "background": "white",
        "objects": [
            {"place": "top left", "shape": "circle", "color": "red", "size": "small"},
            {"place": "top right", "shape": "star", "color": "blue", "size": "large"},
        ],
    }


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (("middle", "circle", "red", "small"), "middle"),
        (("top left", "heptagon", "red", "small"), "heptagon"),
        (("top left", "circle", "mauve", "small"), "mauve"),
        (("top left", "circle", "red", "huge"), "huge"),
    ],
)
def test_an_unknown_word_is_named_in_the_error(words: tuple[str, str, str, str], unknown: str) -> None:
    with pytest.raises(ValueError, match=f"'{unknown}' is not one of"):
        Object(*words)


def test_an_unknown_background_is_an_error() -> None:
    with pytest.raises(ValueError, match="background 'red' is not one of"):
        Scene((CIRCLE,), "red")


@pytest.mark.parametrize("objects", [(), (CIRCLE, STAR, CROSS, SQUARE)])
def test_a_scene_needs_one_to_three_objects(objects: tuple[Object, ...]) -> None:
    with pytest.raises(ValueError, match=f"1 to {MAX_OBJECTS} objects, not {len(objects)}"):
        Scene(objects, "white")


def test_two_objects_in_one_place_are_an_error() -> None:
    with pytest.raises(ValueError, match="two objects share a place"):
        Scene((CIRCLE, Object("top left", "star", "blue", "large")), "white")
