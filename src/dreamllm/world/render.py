"""Scene -> picture: anti-aliased shapes drawn from signed distances. A pure function of the scene."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PILImage

from dreamllm.world.scene import BACKGROUNDS, CELL_PX, COLORS, PICTURE_PX, Object, Scene

RADIUS_PX = {"small": 8.0, "large": 13.5}
"""Half the extent of an object; a cell is 32 px wide."""


@cache
def coverage(shape: str, size: str) -> Float[np.ndarray, "32 32"]:
    """How much of each pixel of a cell the object covers, in [0, 1]."""
    centers = np.arange(CELL_PX) + 0.5 - CELL_PX / 2
    x, y = np.meshgrid(centers, centers)
    distance = _SIGNED_DISTANCES[shape](x, y, RADIUS_PX[size])
    result = np.clip(0.5 - distance, 0.0, 1.0)
    result.flags.writeable = False
    return result


def cell_origin(thing: Object) -> tuple[int, int]:
    """Top and left pixel of the object's cell."""
    return thing.row * CELL_PX, thing.column * CELL_PX


def render(scene: Scene) -> UInt8[np.ndarray, "64 64 3"]:
    """The picture of a scene, RGB."""
    canvas = np.empty((PICTURE_PX, PICTURE_PX, 3))
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        top, left = cell_origin(thing)
        alpha = coverage(thing.shape, thing.size)[:, :, None]
        cell = canvas[top : top + CELL_PX, left : left + CELL_PX]
        cell[:] = (1 - alpha) * cell + alpha * np.asarray(COLORS[thing.color])
    return np.rint(canvas).astype(np.uint8)


def foreground(scene: Scene) -> Bool[np.ndarray, "64 64"]:
    """Pixels an object touches, with one pixel of margin: what a training loss may weigh more."""
    mask = np.zeros((PICTURE_PX, PICTURE_PX), dtype=bool)
    for thing in scene.objects:
        top, left = cell_origin(thing)
        touched = np.pad(coverage(thing.shape, thing.size) > 0, 1)
        near = touched.copy()
        for axis in (0, 1):
            near |= np.roll(touched, 1, axis) | np.roll(touched, -1, axis)
        mask[top : top + CELL_PX, left : left + CELL_PX] = near[1:-1, 1:-1]
    return mask


def render_image(scene: Scene) -> PILImage.Image:
    """The picture of a scene, for people and for documents."""
    return PILImage.fromarray(render(scene))


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x, y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    # three half-planes; the tip points up
    slope = np.array([np.cos(np.pi / 6), -np.sin(np.pi / 6)]) * 1.0
    sides = np.maximum(np.abs(x) * slope[0] + (y + radius) * slope[1], y - 0.75 * radius)
    return sides


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    # a five-pointed star as a polygon, by winding over its ten corners
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.08 * radius, 0.46 * radius)
    return _polygon(x, y, np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.06 * radius], axis=1))


def _cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    arm, width = radius, 0.32 * radius
    across = np.maximum(np.abs(x) - arm, np.abs(y) - width)
    down = np.maximum(np.abs(x) - width, np.abs(y) - arm)
    return np.minimum(across, down)


def _polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    point = np.stack([x, y], axis=-1)
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for i in range(len(corners)):
        a, b = corners[i], corners[i - 1]
        edge, offset = b - a, point - a
        along = np.clip((offset @ edge) / (edge @ edge), 0, 1)
        squared = np.minimum(squared, ((offset - along[..., None] * edge) ** 2).sum(-1))
        crosses = (a[1] > y) != (b[1] > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0]
        inside ^= crosses & (x < at)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


_SIGNED_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
