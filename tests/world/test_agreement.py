"""Agreement of texts with pictures and with texts, counted by hand."""

import numpy as np
import pytest

from dreamllm.world.agreement import ATTRIBUTES, Agreement, agreement
from dreamllm.world.judge import CellReading, CellState, Judge, Reading
from dreamllm.world.language import CAPTION_STYLES, caption
from dreamllm.world.reading import Facts, ObjectFacts, read_text
from dreamllm.world.render import render
from dreamllm.world.scene import PLACES
from dreamllm.world.splits import sample_scene

Thing = tuple[str, str, str]


def reading(background: str | None = "white", **cells: Thing | CellState) -> Reading:
    """A reading; cells by place with an underscore: (shape, color, size), or 'unclear'."""
    found = []
    for place in PLACES:
        cell = cells.get(place.replace(" ", "_"), "empty")
        if isinstance(cell, tuple):
            found.append(CellReading(place, cell[0], cell[1], cell[2], "object"))
        else:
            found.append(CellReading(place, None, None, None, cell))
    return Reading(background, tuple(found))


def counted(result: Agreement) -> dict[str, tuple[int, int]]:
    return {name: tuple(count) for name, count in result.counts.items() if count.asserted}


TWO = read_text(
    "A small red circle at the top left and a large blue square at the top right on a white background."
)
RED_CIRCLE, BLUE_SQUARE = ("circle", "red", "small"), ("square", "blue", "large")


def test_a_picture_that_shows_everything_is_all_correct() -> None:
    result = agreement(TWO, reading(top_left=RED_CIRCLE, top_right=BLUE_SQUARE))

    assert counted(result) == {
        "shape": (2, 2),
        "color": (2, 2),
        "size": (2, 2),
        "place": (2, 2),
        "binding": (2, 2),
        "count": (1, 1),
        "background": (1, 1),
        "relation": (1, 1),  # left of; both are at the top, so nothing is above
    }
    assert result.all_correct


def test_swapped_colors_lose_color_and_binding_alone() -> None:
    result = agreement(
        TWO, reading(top_left=("circle", "blue", "small"), top_right=("square", "red", "large"))
    )

    assert counted(result)["shape"] == (2, 2)
    assert counted(result)["color"] == (0, 2)
    assert counted(result)["binding"] == (0, 2)
    assert counted(result)["place"] == (2, 2)
    assert not result.all_correct


def test_swapped_places_lose_place_and_relation_alone() -> None:
    result = agreement(TWO, reading(top_left=BLUE_SQUARE, top_right=RED_CIRCLE))

    assert counted(result)["binding"] == (2, 2)
    assert counted(result)["place"] == (0, 2)
    assert counted(result)["relation"] == (0, 1)


def test_a_relation_can_be_right_where_places_are_wrong() -> None:
    result = agreement(TWO, reading(bottom_left=RED_CIRCLE, bottom_right=BLUE_SQUARE))

    assert counted(result)["place"] == (0, 2)
    assert counted(result)["relation"] == (1, 1)


def test_a_missing_object_has_nothing_right() -> None:
    result = agreement(TWO, reading(top_left=RED_CIRCLE))

    assert counted(result) == {
        "shape": (1, 2),
        "color": (1, 2),
        "size": (1, 2),
        "place": (1, 2),
        "binding": (1, 2),
        "count": (0, 1),
        "background": (1, 1),
        "relation": (0, 1),
    }


def test_an_unclear_cell_shows_nothing_and_spoils_the_count() -> None:
    missing = agreement(TWO, reading(top_left=RED_CIRCLE, top_right="unclear"))
    extra = agreement(TWO, reading(top_left=RED_CIRCLE, top_right=BLUE_SQUARE, bottom_left="unclear"))

    assert counted(missing)["shape"] == (1, 2)
    assert counted(missing)["count"] == (0, 1)
    assert counted(extra)["shape"] == (2, 2)
    assert counted(extra)["count"] == (0, 1)


def test_an_unclear_cell_is_wrong_even_in_what_is_certain_of_it() -> None:
    cells = list(reading(top_left=RED_CIRCLE).cells)
    cells[1] = CellReading("top right", "square", "blue", None, "unclear")

    assert counted(agreement(TWO, Reading("white", tuple(cells))))["color"] == (1, 2)


def test_one_object_more_is_wrong_only_where_the_text_names_all() -> None:
    seen = reading(top_left=RED_CIRCLE, bottom_left=BLUE_SQUARE)
    thing = (ObjectFacts("circle", "red"),)

    assert counted(agreement(Facts(thing, is_complete=True), seen))["count"] == (0, 1)
    assert counted(agreement(Facts(thing, is_complete=False), seen))["count"] == (1, 1)


def test_what_is_not_asserted_is_not_counted() -> None:
    short = read_text("A red circle and a blue square.")
    result = agreement(short, reading("black", bottom_left=RED_CIRCLE, top_right=BLUE_SQUARE))

    assert counted(result) == {"shape": (2, 2), "color": (2, 2), "binding": (2, 2), "count": (1, 1)}
    assert result.all_correct


def test_a_background_that_is_not_read_is_wrong() -> None:
    result = agreement(TWO, reading(None, top_left=RED_CIRCLE, top_right=BLUE_SQUARE))

    assert counted(result)["background"] == (0, 1)


def test_nothing_asserted_is_not_all_correct() -> None:
    result = agreement(Facts(), reading(top_left=RED_CIRCLE))

    assert counted(result) == {}
    assert not result.all_correct


def test_objects_are_matched_so_that_the_most_is_right() -> None:
    """In order, the first circle would take the only red one and leave nothing for the second."""
    said = Facts((ObjectFacts("circle"), ObjectFacts("circle", "red")), is_complete=True)
    result = agreement(said, reading(top_left=RED_CIRCLE, top_right=("circle", "green", "large")))

    assert counted(result)["color"] == (1, 1)
    assert result.all_correct


def test_relations_are_counted_on_each_axis_on_which_two_objects_differ() -> None:
    """Top left, top right, bottom left: one pair differs in a column, one in a row, one in both."""
    text = (
        "A small red circle at the top left, a large blue square at the top right and a small pink star at "
        "the bottom left on a gray background."
    )
    seen = reading("gray", top_left=RED_CIRCLE, top_right=BLUE_SQUARE, bottom_left=("star", "pink", "small"))

    assert counted(agreement(read_text(text), seen))["relation"] == (4, 4)


def test_many_asserted_objects_are_matched_in_reasonable_time() -> None:
    things = tuple(ObjectFacts("star", "red", "small", PLACES[i % 4]) for i in range(40))
    seen = reading(**{place.replace(" ", "_"): ("star", "red", "small") for place in PLACES})

    result = agreement(Facts(things, is_complete=True), seen)

    assert counted(result)["shape"] == (4, 40)
    assert counted(result)["place"] == (4, 40)


def test_texts_are_compared_the_same_way() -> None:
    said = read_text("A small red circle at the top left on a white background.")

    assert agreement(said, said).all_correct
    assert counted(agreement(TWO, said))["shape"] == (1, 2)
    assert counted(agreement(TWO, said))["count"] == (0, 1)
    assert counted(agreement(TWO, Facts()))["shape"] == (0, 2)


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_true_pictures_agree_with_their_captions_wholly(style: str) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(60)]
    readings = Judge().read_many([render(scene) for scene in scenes])

    for scene, read in zip(scenes, readings, strict=True):
        result = agreement(read_text(caption(scene, style, rng)), read)  # type: ignore[arg-type]
        assert result.all_correct
        assert tuple(result.counts) == ATTRIBUTES


def test_pictures_of_other_scenes_never_agree_wholly_with_a_full_caption() -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(60)]
    readings = Judge().read_many([render(scene) for scene in [*scenes[1:], scenes[0]]])

    for scene, read in zip(scenes, readings, strict=True):
        if read.scene != scene:
            assert not agreement(read_text(caption(scene, "full")), read).all_correct
