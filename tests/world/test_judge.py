"""The judge: exact on true renders, tolerant of mild damage, honest about everything else."""

import io
import time
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageFilter

from dreamllm.errors import ImageError
from dreamllm.world.judge import MIN_MARGIN, Judge, Reading, judge_accuracy, weigh
from dreamllm.world.render import coverage, render, render_image
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]
KINDS = list(product(SHAPES, SIZES, COLORS, BACKGROUNDS))


def scenes_of_one() -> list[Scene]:
    return [Scene((Object(place, s, c, z),), b) for place in PLACES for s, z, c, b in KINDS]


def random_scenes(num: int, seed: int = 0) -> list[Scene]:
    """Scenes of two and three objects, drawn without help from the package."""
    rng = np.random.default_rng(seed)

    def pick(words: object) -> str:
        options = list(words)  # type: ignore[call-overload]
        return options[rng.integers(len(options))]

    return [
        Scene(
            tuple(
                Object(PLACES[p], pick(SHAPES), pick(COLORS), pick(SIZES))
                for p in rng.permutation(4)[: 2 + i % 2]
            ),
            pick(BACKGROUNDS),
        )
        for i in range(num)
    ]


def over(alpha: np.ndarray, color: str | tuple[int, int, int], background: str) -> np.ndarray:
    """A picture whose top left cell holds a colour behind any mask."""
    picture = np.empty((64, 64, 3))
    picture[:] = BACKGROUNDS[background]
    rgb = np.asarray(COLORS[color] if isinstance(color, str) else color)
    picture[:32, :32] += alpha[..., None] * (rgb - picture[:32, :32])
    return np.rint(picture).astype(np.uint8)


def share_read(pictures: list[np.ndarray]) -> float:
    """Share of pictures whose top left cell is read as an object."""
    return float(np.mean([reading.cells[0].state == "object" for reading in Judge().read_many(pictures)]))


# ---- true renders ----------------------------------------------------------------------------------------


def test_every_scene_of_one_object_is_read_exactly() -> None:
    scenes = scenes_of_one()

    assert [reading.scene for reading in Judge().read_many([render(s) for s in scenes])] == scenes


def test_scenes_of_two_and_three_objects_are_read_exactly() -> None:
    scenes = random_scenes(1000)

    readings = Judge().read_many([render(s) for s in scenes])

    assert [reading.scene for reading in readings] == scenes
    assert [reading.num_objects for reading in readings] == [len(s.objects) for s in scenes]


def test_the_judge_measures_itself_without_error() -> None:
    assert judge_accuracy(600, seed=3) == 1.0


def test_the_nearest_two_shapes_are_told_apart_with_a_margin() -> None:
    evidence = weigh(np.stack([render(s) for s in scenes_of_one()[:320]]))

    assert evidence.shape_margin[:, 0].min() > 4 * MIN_MARGIN
    assert evidence.size_margin[:, 0].min() > 20 * MIN_MARGIN


def test_several_hundred_pictures_a_second() -> None:
    pictures = [render(s) for s in random_scenes(256)]
    judge = Judge()
    judge.read_many(pictures[:2])
    start = time.process_time()

    judge.read_many(pictures)

    assert time.process_time() - start < 256 / 100  # the aim is 300; a third of it is left to slow machines


# ---- mild damage -----------------------------------------------------------------------------------------


def blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(PILImage.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7)))


def noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(picture + rng.normal(0, 8, picture.shape)), 0, 255).astype(np.uint8)


def tint(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(picture.astype(int) + rng.integers(-10, 11, 3), 0, 255).astype(np.uint8)


def shift(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    down, right = rng.choice([-2, -1, 1, 2], 2)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    return padded[2 - down : 66 - down, 2 - right : 66 - right]


def jpeg(picture: np.ndarray, rng: np.random.Generator, subsampling: str = "4:4:4") -> np.ndarray:
    buffer = io.BytesIO()
    PILImage.fromarray(picture).save(buffer, "JPEG", quality=60, subsampling=subsampling)
    return np.asarray(PILImage.open(buffer))


def jpeg_with_half_resolution_color(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return jpeg(picture, rng, "4:2:0")


def all_at_once(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return jpeg(noise(tint(shift(blur(picture, rng), rng), rng), rng), rng)


@pytest.mark.parametrize(
    ("damage", "required"),
    [
        (blur, 0.98),
        (noise, 0.98),
        (tint, 0.98),
        (shift, 0.98),
        (jpeg, 0.98),
        (all_at_once, 0.98),
        (jpeg_with_half_resolution_color, 0.85),  # small shapes as bright as their background are refused
    ],
)
def test_mild_damage_hides_little_and_never_misleads(damage: Damage, required: float) -> None:
    rng = np.random.default_rng(1)
    scenes = scenes_of_one()[::5] + random_scenes(200, seed=1)

    found = [r.scene for r in Judge().read_many([damage(render(s), rng) for s in scenes])]

    assert np.mean([a == b for a, b in zip(found, scenes, strict=True)]) >= required
    assert [a for a, b in zip(found, scenes, strict=True) if a not in (None, b)] == []


def test_every_palette_color_survives_a_tint_of_ten_levels() -> None:
    tints = list(product((-10, 10), repeat=3))
    scenes = [
        s for s in scenes_of_one()[:320] if s.objects[0].shape == "circle" and s.objects[0].size == "small"
    ]
    pictures = [np.clip(render(s).astype(int) + t, 0, 255).astype(np.uint8) for s in scenes for t in tints]

    readings = Judge().read_many(pictures)

    assert [r.scene for r in readings] == [s for s in scenes for _ in tints]
    assert {r.cells[0].color for r in readings} == set(COLORS)
    assert {r.background for r in readings} == set(BACKGROUNDS)


# ---- faults ----------------------------------------------------------------------------------------------

ROWS, COLUMNS = np.mgrid[:32, :32]


@pytest.mark.parametrize(
    "kept", [ROWS >= 16, ROWS < 16, COLUMNS >= 16, COLUMNS < 16, (ROWS >= 16) | (COLUMNS < 16)]
)
def test_half_and_three_quarters_of_an_object_are_no_object(kept: np.ndarray) -> None:
    assert share_read([over(coverage(s, z) * kept, c, b) for s, z, c, b in KINDS]) == 0


def test_two_shapes_half_and_half_are_no_object() -> None:
    pictures = [
        over((coverage(one, z) + coverage(two, z)) / 2, c, b)
        for one, two in combinations(SHAPES, 2)
        for z, c, b in product(SIZES, COLORS, BACKGROUNDS)
    ]

    assert share_read(pictures) == 0


def test_two_sizes_half_and_half_and_a_size_between_are_no_object() -> None:
    blends = [over((coverage(s, "small") + coverage(s, "large")) / 2, c, b) for s, z, c, b in KINDS]
    middle = np.clip(0.5 - (np.hypot(ROWS - 15.5, COLUMNS - 15.5) - 10.75), 0, 1)

    assert share_read(blends) == 0
    assert share_read([over(middle, c, b) for c, b in product(COLORS, BACKGROUNDS)]) == 0


def test_the_average_of_all_shapes_is_no_object() -> None:
    averages = [np.mean([coverage(s, z) for s in SHAPES], axis=0) for z in SIZES]
    averages.append(np.mean(averages, axis=0))

    assert share_read([over(a, c, b) for a in averages for c, b in product(COLORS, BACKGROUNDS)]) == 0


def test_a_soft_blob_is_no_object() -> None:
    squared = (ROWS - 15.5) ** 2 + (COLUMNS - 15.5) ** 2
    blobs = [np.exp(-squared / 2 / sigma**2) for sigma in (4, 6, 8)]

    assert share_read([over(blob, c, b) for blob in blobs for c, b in product(COLORS, BACKGROUNDS)]) == 0


def test_shapes_the_world_does_not_have_are_no_object() -> None:
    upside_down = [coverage(s, z)[::-1] for s in ("triangle", "star") for z in SIZES]
    diamond = np.clip(0.5 - ((abs(ROWS - 15.5) + abs(COLUMNS - 15.5)) / 2**0.5 - 7.2), 0, 1)

    masks = [*upside_down, diamond]

    assert share_read([over(m, c, b) for m in masks for c, b in product(COLORS, BACKGROUNDS)]) == 0


def test_a_gray_shape_has_no_color_but_keeps_shape_and_size() -> None:
    reading = Judge().read(over(coverage("star", "large"), (120, 120, 120), "white")).cells[0]

    assert (reading.state, reading.shape, reading.size, reading.color) == ("unclear", "star", "large", None)


def test_a_gray_smear_has_nothing_certain() -> None:
    smear = np.exp(-((ROWS - 15.5) ** 2 / 32 + (COLUMNS - 15.5) ** 2 / 128))

    reading = Judge().read(over(smear, (120, 120, 120), "white")).cells[0]

    assert (reading.state, reading.shape, reading.size, reading.color) == ("unclear", None, None, None)


def test_half_an_object_keeps_its_color() -> None:
    reading = Judge().read(over(coverage("circle", "large") * (COLUMNS < 16), "purple", "white")).cells[0]

    assert (reading.state, reading.shape, reading.color) == ("unclear", None, "purple")


def test_two_colors_in_one_cell_are_no_certain_color() -> None:
    picture = over(coverage("square", "large"), "red", "black")
    picture[:16, :32] = over(coverage("square", "large"), "cyan", "black")[:16, :32]

    reading = Judge().read(picture)

    assert reading.cells[0].state == "unclear"
    assert reading.cells[0].color is None
    assert reading.scene is None


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 4), (2, 8), (5, 5)])
def test_a_speck_of_another_color_spoils_an_object(height: int, width: int) -> None:
    rng = np.random.default_rng(2)
    pictures = []
    for s, z, c, b in KINDS:
        picture = over(coverage(s, z), c, b)
        top, left = rng.integers(0, 33 - height), rng.integers(0, 33 - width)
        others = [other for other in COLORS if other != c]
        picture[top : top + height, left : left + width] = COLORS[others[rng.integers(len(others))]]
        pictures.append(picture)

    assert share_read(pictures) <= 0.01  # next to nothing: blue within purple, orange within yellow


def test_a_speck_spoils_an_empty_cell() -> None:
    for color, background in product(COLORS, BACKGROUNDS):
        picture = render(Scene((Object("top left", "cross", color, "small"),), background))
        picture[45:49, 45:49] = COLORS[color]

        reading = Judge().read(picture)

        assert [cell.state for cell in reading.cells] == ["object", "empty", "empty", "unclear"]
        assert reading.scene is None


# ---- what a reading says ---------------------------------------------------------------------------------


def test_an_empty_picture_has_a_background_and_no_scene() -> None:
    reading = Judge().read(np.full((64, 64, 3), BACKGROUNDS["brown"], dtype=np.uint8))

    assert reading.background == "brown"
    assert [cell.state for cell in reading.cells] == ["empty"] * 4
    assert reading.num_objects == 0
    assert reading.scene is None


def test_four_objects_are_counted_but_are_no_scene() -> None:
    picture = render(Scene((Object("top left", "cross", "red", "small"),), "white"))
    picture = np.tile(picture[:32, :32], (2, 2, 1))

    reading = Judge().read(picture)

    assert reading.num_objects == 4
    assert reading.scene is None


def test_cells_come_in_the_order_of_places() -> None:
    assert tuple(cell.place for cell in Judge().read(np.zeros((64, 64, 3), np.uint8)).cells) == PLACES


@pytest.mark.parametrize("rgb", [(60, 60, 200), (200, 200, 200), (75, 75, 75)])
def test_a_background_outside_the_palette_is_not_named(rgb: tuple[int, int, int]) -> None:
    assert Judge().read(np.full((64, 64, 3), rgb, dtype=np.uint8)).background is None


def test_a_background_of_two_halves_is_not_named() -> None:
    picture = np.full((64, 64, 3), BACKGROUNDS["white"], dtype=np.uint8)
    picture[:, :31] = BACKGROUNDS["gray"]

    assert Judge().read(picture).background is None


def test_random_noise_is_no_scene() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)

    assert {reading.scene for reading in Judge().read_many(pictures)} == {None}


# ---- input -----------------------------------------------------------------------------------------------


def test_pictures_arrays_and_enlarged_pictures_read_the_same() -> None:
    scene = random_scenes(1)[0]
    picture = render_image(scene)
    large = picture.resize((512, 512), PILImage.Resampling.NEAREST)

    readings: list[Reading] = Judge().read_many([picture, render(scene), large, picture.convert("RGBA")])

    assert {reading.scene for reading in readings} == {scene}


def test_one_picture_and_many_read_the_same() -> None:
    pictures = np.stack([render(s) for s in random_scenes(70)])

    assert Judge().read_many(pictures) == [Judge().read(picture) for picture in pictures]


def test_no_pictures_give_no_readings() -> None:
    assert Judge().read_many([]) == []


@pytest.mark.parametrize(
    "array", [np.zeros((64, 64, 3)), np.zeros((3, 64, 64), np.uint8), np.zeros((0, 64, 3), np.uint8)]
)
def test_an_array_that_is_no_picture_is_an_error(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"uint8 and shape \(H, W, 3\); convert the picture"):
        Judge().read(array)


def test_a_picture_without_pixels_is_an_error() -> None:
    with pytest.raises(ImageError, match="at least one pixel"):
        Judge().read(PILImage.new("RGB", (0, 5)))
