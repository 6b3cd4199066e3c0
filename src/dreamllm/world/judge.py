"""Picture -> scene: reads a picture of the world back by exact means, nothing learned.

The picture minus its background is compared, cell by cell, with every shape, size and shift; the colour that
fits best follows in closed form. A cell that no single object explains is called unclear, never guessed: a
score built on this judge counts what a picture shows, not what it nearly shows.

Cells are smoothed first, which takes most of the noise and of the soft edges and leaves real faults standing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image as PILImage

from dreamllm.errors import ImageError
from dreamllm.world.render import coverage, render
from dreamllm.world.scene import (
    BACKGROUNDS,
    CELL_PX,
    COLORS,
    MAX_OBJECTS,
    PICTURE_PX,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
)
from dreamllm.world.splits import SPLITS, sample_scene

CellState = Literal["empty", "object", "unclear"]

SMOOTHING_PX = (0.8, 1.2, 1.2)
"""Standard deviation of the smoothing that pictures and templates share: brightness, then the two colour
axes, in which pictures are stored less sharply."""
MAX_SHIFT_PX = 3
"""How far from the middle of its cell an object is still looked for."""
FAINT_LEVELS = 24.0
"""How far a pixel may be from the background and still be background, in levels of 255."""
FAULT_SHARE = 0.22
"""How far a pixel may be from what the reading says, as a share of the contrast of the object."""
FAULT_LEVELS = (16.0, 45.0)
"""The least and the most that share may come to, in levels of 255."""
MAX_FAULTY_PX = 6
"""How many pixels of a cell may be farther off than that."""
MAX_RESIDUAL = 0.08
"""Which share of the energy of a cell the object may leave unexplained."""
MIN_MARGIN = 0.006
"""How much more of that energy a shape or a size must explain than its best rival."""
MAX_COLOR_DISTANCE = 20.0
"""CIELAB distance within which a colour can be a palette colour; palette colours are 29 apart or more."""
MAX_COLOR_RATIO = 0.7
"""How near a palette colour must be, relative to the runner-up."""
MAX_OTHER_COLOR = 0.05
"""Which share of the energy of an unclear cell may lie off the line from the background to its one colour."""
MIN_UNIFORM_SHARE = 0.7
"""Which share of the pixels that no object reaches must look like the background."""

_CORE_SHARE = 0.7  # of the largest distance from the background, where an object is pure colour
_CHUNK = 64  # pictures a matrix product: the working set stays small


@dataclass(frozen=True, slots=True)
class CellReading:
    """What one cell shows; on an unclear cell, the attributes that are certain all the same."""

    place: str
    shape: str | None
    color: str | None
    size: str | None
    state: CellState


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows; cells in the order of PLACES."""

    background: str | None
    cells: tuple[CellReading, ...]

    @property
    def num_objects(self) -> int:
        """Cells that clearly hold an object; unclear cells do not count."""
        return sum(cell.state == "object" for cell in self.cells)

    @property
    def scene(self) -> Scene | None:
        """The scene, or None where the picture is not clearly one."""
        if self.background is None or any(cell.state == "unclear" for cell in self.cells):
            return None
        if not 1 <= self.num_objects <= MAX_OBJECTS:
            return None
        objects = tuple(
            Object(place=cell.place, shape=cell.shape, color=cell.color, size=cell.size)
            for cell in self.cells
            if cell.shape is not None and cell.color is not None and cell.size is not None
        )
        return Scene(objects, self.background)


@dataclass(frozen=True)
class Evidence:
    """What the thresholds are applied to, for N pictures of four cells; `reading_of` decides on it."""

    background: Float[np.ndarray, "N 3"]
    """The colour between the cells."""
    uniform_share: Float[np.ndarray, " N"]
    """Share of the pixels between the cells that have it."""
    visible_px: Int[np.ndarray, "N 4"]
    """Pixels that are not background."""
    kind: Int[np.ndarray, "N 4"]
    """Index of the (shape, size) that fits best."""
    faulty_px: Int[np.ndarray, "N 4"]
    """Pixels that the best fit does not explain."""
    residual: Float[np.ndarray, "N 4"]
    """Share of the energy that the best fit leaves."""
    shape_margin: Float[np.ndarray, "N 4"]
    """Share of the energy that the best other shape leaves besides."""
    size_margin: Float[np.ndarray, "N 4"]
    """The same for the other size."""
    fitted_color: Float[np.ndarray, "N 4 3"]
    """Colour of the best fit, by least squares."""
    core_color: Float[np.ndarray, "N 4 3"]
    """Mean colour of the pixels farthest from the background: right even where the shape is not."""
    core_px: Int[np.ndarray, "N 4"]
    """How many they are."""
    other_color: Float[np.ndarray, "N 4"]
    """Share of the energy that is no mixture of the background and this colour."""


class Judge:
    """Reads pictures of the world: exact on true renders, tolerant of noise, mild blur and shifts of 2 px."""

    def read(self, image: PILImage.Image | np.ndarray) -> Reading:
        """What a picture shows; it is resized to 64 x 64 if needed.

        Raises:
            ImageError: an array is not uint8 of shape (H, W, 3).
        """
        return self.read_many([image])[0]

    def read_many(self, images: Sequence[PILImage.Image | np.ndarray] | np.ndarray) -> list[Reading]:
        """What each picture shows; many at once are several times faster than one by one.

        Raises:
            ImageError: an array is not uint8 of shape (H, W, 3).
        """
        readings: list[Reading] = []
        for start in range(0, len(images), _CHUNK):
            pixels = np.stack([_to_pixels(image) for image in images[start : start + _CHUNK]])
            readings += _decide(weigh(pixels))
        return readings


def judge_accuracy(num_scenes: int = 1000, seed: int = 0) -> float:
    """Share of random true renders, of all splits, that the judge reads without any error.

    Printed beside every score that rests on the judge.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, SPLITS[i % len(SPLITS)]) for i in range(num_scenes)]
    readings = Judge().read_many([render(scene) for scene in scenes])
    return sum(reading.scene == scene for reading, scene in zip(readings, scenes, strict=True)) / num_scenes


# ---- evidence ----------------------------------------------------------------------------------------------

_KINDS = tuple(product(SHAPES, SIZES))
_SHIFTS = tuple(product(range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1), repeat=2))
_AXES = np.array(
    [[0.518, 1.017, 0.197], [-0.203, -0.397, 0.6], [0.6, -0.503, -0.097]],
    dtype=np.float32,
)
"""RGB -> brightness and the colour differences of JPEG, scaled so that distances stay near those of RGB."""
_AXES_TO_RGB = np.linalg.inv(_AXES)


def weigh(pixels: UInt8[np.ndarray, "N 64 64 3"]) -> Evidence:
    """The evidence for the readings, before any threshold is applied."""
    between = pixels[:, _between_cells()].astype(np.float32)
    background = np.median(between, axis=1)
    off = np.linalg.norm(between - background[:, None], axis=-1)
    difference = _smooth_cells((pixels - background[:, None, None]) @ _AXES.T)
    templates, lengths = _dictionary()
    amounts = np.einsum("akp,ncpa->ncak", templates, difference, optimize=True)
    explained = (amounts**2).sum(axis=2)  # (N, 4, K)
    best = explained.argmax(axis=-1)
    amount = np.take_along_axis(amounts, best[:, :, None, None], axis=-1)[..., 0]  # (N, 4, 3)
    contrast = amount / lengths.T[best]
    left = difference - templates.transpose(1, 2, 0)[best] * amount[:, :, None]
    fault_levels = np.clip(FAULT_SHARE * np.linalg.norm(contrast, axis=-1, keepdims=True), *FAULT_LEVELS)
    energy = (difference**2).sum(axis=(2, 3)) + np.finfo(np.float32).tiny
    by_kind = explained.reshape(*best.shape, len(SHAPES), len(SIZES), len(_SHIFTS)).max(axis=-1)
    core, core_px = _core(difference)
    return Evidence(
        background=background,
        uniform_share=(off < FAINT_LEVELS).mean(axis=1),
        visible_px=(np.linalg.norm(difference, axis=-1) > FAINT_LEVELS).sum(axis=-1),
        kind=best // len(_SHIFTS),
        faulty_px=(np.linalg.norm(left, axis=-1) > fault_levels).sum(axis=-1),
        residual=(left**2).sum(axis=(2, 3)) / energy,
        shape_margin=_margin(by_kind.max(axis=3)) / energy,
        size_margin=_margin(by_kind.max(axis=2)) / energy,
        fitted_color=background[:, None] + contrast @ _AXES_TO_RGB.T,
        core_color=background[:, None] + core @ _AXES_TO_RGB.T,
        core_px=core_px,
        other_color=1 - _energy_along(difference, core) / energy,
    )


@cache
def _dictionary() -> tuple[Float[np.ndarray, "3 K 1024"], Float[np.ndarray, "3 K"]]:
    """Smoothed coverages of every kind and shift at unit length, and the lengths they had."""
    masks = np.stack([_shifted(coverage(*kind), *shift) for kind in _KINDS for shift in _SHIFTS])
    smooth = _smoothing()[:, None] @ masks.astype(np.float32) @ _smoothing()[:, None].swapaxes(2, 3)
    smooth = smooth.reshape(3, len(masks), -1)
    lengths = np.linalg.norm(smooth, axis=2)
    return smooth / lengths[..., None], lengths


def _shifted(mask: Float[np.ndarray, "32 32"], down: int, right: int) -> Float[np.ndarray, "32 32"]:
    padded = np.pad(mask, MAX_SHIFT_PX)
    top, left = MAX_SHIFT_PX - down, MAX_SHIFT_PX - right
    return padded[top : top + CELL_PX, left : left + CELL_PX]


@cache
def _smoothing() -> Float[np.ndarray, "3 32 32"]:
    """A Gaussian that renormalises at the border of a cell, so that neighbours do not leak in."""
    steps = np.arange(CELL_PX)[:, None] - np.arange(CELL_PX)
    weights = np.exp(-0.5 * (steps / np.asarray(SMOOTHING_PX)[:, None, None]) ** 2)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


@cache
def _between_cells() -> Bool[np.ndarray, "64 64"]:
    """Pixels that no object touches."""
    touched = np.maximum.reduce([coverage(*kind) for kind in _KINDS]) > 0
    return ~np.tile(touched, (PICTURE_PX // CELL_PX, PICTURE_PX // CELL_PX))


def _smooth_cells(pixels: Float[np.ndarray, "N 64 64 3"]) -> Float[np.ndarray, "N 4 1024 3"]:
    num, per_side = len(pixels), PICTURE_PX // CELL_PX
    cells = pixels.reshape(num, per_side, CELL_PX, per_side, CELL_PX, 3).transpose(0, 1, 3, 5, 2, 4)
    smooth = _smoothing() @ cells @ _smoothing().swapaxes(1, 2)
    return smooth.reshape(num, len(PLACES), 3, -1).swapaxes(2, 3)


def _margin(explained: Float[np.ndarray, "N 4 R"]) -> Float[np.ndarray, "N 4"]:
    """How far the best of the rivals is ahead of the second."""
    ranked = np.sort(explained, axis=-1)
    return ranked[..., -1] - ranked[..., -2]


def _core(
    difference: Float[np.ndarray, "N 4 1024 3"],
) -> tuple[Float[np.ndarray, "N 4 3"], Int[np.ndarray, "N 4"]]:
    """Mean and number of the pixels farthest from the background."""
    distance = np.linalg.norm(difference, axis=-1, keepdims=True)
    inside = distance >= _CORE_SHARE * distance.max(axis=2, keepdims=True)
    num = inside.sum(axis=(2, 3))
    return (difference * inside).sum(axis=2) / num[..., None], num


def _energy_along(
    difference: Float[np.ndarray, "N 4 1024 3"], direction: Float[np.ndarray, "N 4 3"]
) -> Float[np.ndarray, "N 4"]:
    """Energy of the differences along one direction of colour."""
    length = np.linalg.norm(direction, axis=-1, keepdims=True) + np.finfo(np.float32).tiny
    return ((difference @ (direction / length)[..., None]) ** 2).sum(axis=(2, 3))


# ---- decision ----------------------------------------------------------------------------------------------


def _decide(evidence: Evidence) -> list[Reading]:
    backgrounds = _name(evidence.background, BACKGROUNDS)
    fitted = _name(evidence.fitted_color, COLORS)
    core = _name(evidence.core_color, COLORS)
    readings = []
    for n, share in enumerate(evidence.uniform_share):
        background = backgrounds[n] if share >= MIN_UNIFORM_SHARE else None
        cells = tuple(_decide_cell(evidence, n, c, fitted[n, c], core[n, c]) for c in range(len(PLACES)))
        readings.append(Reading(background, cells))
    return readings


def _decide_cell(
    evidence: Evidence, n: int, c: int, fitted_color: str | None, core_color: str | None
) -> CellReading:
    place = PLACES[c]
    if evidence.visible_px[n, c] <= MAX_FAULTY_PX:
        return CellReading(place, None, None, None, "empty")
    fits = evidence.residual[n, c] <= MAX_RESIDUAL
    kind = _KINDS[evidence.kind[n, c]]
    shape = kind[0] if fits and evidence.shape_margin[n, c] >= MIN_MARGIN else None
    size = kind[1] if fits and evidence.size_margin[n, c] >= MIN_MARGIN else None
    if shape and size and fitted_color and evidence.faulty_px[n, c] <= MAX_FAULTY_PX:
        return CellReading(place, shape, fitted_color, size, "object")
    pure = evidence.other_color[n, c] <= MAX_OTHER_COLOR and evidence.core_px[n, c] > MAX_FAULTY_PX
    return CellReading(place, shape, core_color if pure else None, size, "unclear")


def _name(colors: Float[np.ndarray, "*S 3"], palette: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """Name of the palette colour that each colour clearly is, or None."""
    known = _to_lab(np.array(list(palette.values())))
    distances = np.linalg.norm(_to_lab(colors)[..., None, :] - known, axis=-1)
    ranked = np.sort(distances, axis=-1)
    clear = (ranked[..., 0] <= MAX_COLOR_DISTANCE) & (ranked[..., 0] <= MAX_COLOR_RATIO * ranked[..., 1])
    nearest = np.array(list(palette), dtype=object)[distances.argmin(axis=-1)]
    nearest[~clear] = None
    return nearest


def _to_lab(colors: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S 3"]:
    """sRGB levels -> CIELAB under D65 (IEC 61966-2-1, CIE 15), where distance is what the eye sees."""
    levels = np.clip(colors, 0, 255) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _RGB_TO_XYZ.T / _RGB_TO_XYZ.sum(axis=1)
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def _to_pixels(image: PILImage.Image | np.ndarray) -> UInt8[np.ndarray, "64 64 3"]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise ImageError(
                f"the judge cannot read an array of {image.dtype} and shape {image.shape}: "
                "it expects uint8 and shape (H, W, 3); convert the picture to RGB levels of 0 to 255"
            )
        image = PILImage.fromarray(image)
    if 0 in image.size:
        raise ImageError(
            f"the judge cannot read a picture of size {image.size}: "
            "it expects at least one pixel; give a picture that is not empty"
        )
    image = image.convert("RGB")
    if image.size != (PICTURE_PX, PICTURE_PX):
        is_larger = min(image.size) >= PICTURE_PX
        resample = PILImage.Resampling.BOX if is_larger else PILImage.Resampling.BICUBIC
        image = image.resize((PICTURE_PX, PICTURE_PX), resample)
    return np.asarray(image)
