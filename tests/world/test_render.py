"""The renderer: areas from geometry, places, colours, purity."""

from itertools import product
from math import pi, radians, sin, tan

import numpy as np
import pytest

from dreamllm.world.render import RADIUS_PX, cell_origin, coverage, render, render_image
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene

AREA_OF_RADIUS_ONE = {
    "circle": pi,
    "square": (2 * 0.9) ** 2,
    "triangle": 1.75**2 * tan(radians(30)),  # height 1.75, half the base is the height times tan 30
    "star": 10 * 0.5 * 1.08 * 0.46 * sin(radians(36)),  # ten triangles between neighbouring corners
    "cross": 2 * (2 * 0.64) - 0.64**2,  # two bars less their overlap
}


@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, SIZES)))
def test_area_follows_geometry(shape: str, size: str) -> None:
    expected = AREA_OF_RADIUS_ONE[shape] * RADIUS_PX[size] ** 2

    # anti-aliasing by distance rounds corners, of which circle and square have few
    assert coverage(shape, size).sum() == pytest.approx(
        expected, abs=1.0 if shape in ("circle", "square") else 1.5
    )


@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, SIZES)))
def test_objects_are_mirror_symmetric_and_leave_a_border(shape: str, size: str) -> None:
    mask = coverage(shape, size)

    np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-9)
    assert mask.min() == 0
    assert mask.max() == 1
    border = np.ones_like(mask, dtype=bool)
    border[1:-1, 1:-1] = False
    assert mask[border].max() == 0


def test_a_large_square_covers_the_pixels_it_should() -> None:
    # half a side is 12.15: 12 whole pixels on each side of the middle and 0.15 of the next
    row = coverage("square", "large")[15]

    assert row[4:28].tolist() == [1.0] * 24
    assert row[3] == pytest.approx(0.15)
    assert row[28] == pytest.approx(0.15)
    assert row[2] == 0


def test_the_triangle_points_up() -> None:
    mask = coverage("triangle", "large")

    assert mask[:10].sum() < mask[-10:].sum()


def test_coverage_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        coverage("circle", "small")[0, 0] = 1


@pytest.mark.parametrize(
    ("place", "origin"), list(zip(PLACES, [(0, 0), (0, 32), (32, 0), (32, 32)], strict=True))
)
def test_an_object_stays_in_its_cell(place: str, origin: tuple[int, int]) -> None:
    thing = Object(place, "star", "green", "large")
    changed = (render(Scene((thing,), "white")) != BACKGROUNDS["white"]).any(axis=-1)

    assert cell_origin(thing) == origin
    top, left = origin
    assert changed[top : top + 32, left : left + 32].sum() == changed.sum() > 200


@pytest.mark.parametrize(("color", "background"), list(product(COLORS, BACKGROUNDS)))
def test_middle_and_corner_have_the_exact_colors(color: str, background: str) -> None:
    picture = render(Scene((Object("top left", "circle", color, "small"),), background))

    assert tuple(picture[16, 16]) == COLORS[color]
    assert tuple(picture[0, 0]) == BACKGROUNDS[background]


def test_an_edge_pixel_mixes_object_and_background() -> None:
    # 0.15 of blue (40, 76, 214) over white (250, 250, 248): 218.5, 223.9, 242.9
    picture = render(Scene((Object("top left", "square", "blue", "large"),), "white"))

    np.testing.assert_allclose(picture[15, 3], [218.5, 223.9, 242.9], atol=0.51)


def test_the_same_scene_is_the_same_picture_and_changes_nothing_else() -> None:
    scene = Scene((Object("top left", "cross", "pink", "small"),), "gray")
    first = render(scene)
    first[:] = 0

    second = render(scene)

    assert second.dtype == np.uint8
    assert second.shape == (64, 64, 3)
    assert second.any()
    np.testing.assert_array_equal(np.asarray(render_image(scene)), second)


def test_different_objects_are_different_pictures() -> None:
    pictures = {
        render(Scene((Object("top left", shape, color, size),), background)).tobytes()
        for shape, color, size, background in product(SHAPES, COLORS, SIZES, BACKGROUNDS)
    }

    assert len(pictures) == 5 * 8 * 2 * 4
