"""Scenes: what a picture of the world shows, as a value.

A picture is a 2 x 2 grid of cells; a scene puts one to three objects into different cells on one background.
Cells align with 16 px vision patches (2 x 2 patches a cell) and with 8x latents (4 x 4 a cell).
"""

from dataclasses import dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 44),
    "orange": (247, 144, 30),
    "yellow": (250, 222, 60),
    "green": (44, 158, 68),
    "cyan": (62, 200, 226),
    "blue": (40, 76, 214),
    "purple": (132, 46, 172),
    "pink": (244, 130, 190),
}
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 248),
    "black": (18, 18, 20),
    "gray": (140, 142, 146),
    "brown": (108, 72, 44),
}
MAX_OBJECTS = 3
PICTURE_PX = 64
CELL_PX = 32


@dataclass(frozen=True, slots=True, order=True)
class Object:
    """One thing in a scene."""

    place: str
    shape: str
    color: str
    size: str

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.place, PLACES),
            (self.shape, SHAPES),
            (self.color, COLORS),
            (self.size, SIZES),
        ):
            if value not in allowed:
                raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")

    @property
    def row(self) -> int:
        """0 at the top, 1 at the bottom."""
        return PLACES.index(self.place) // 2

    @property
    def column(self) -> int:
        """0 at the left, 1 at the right."""
        return PLACES.index(self.place) % 2


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects in different places, in the order of PLACES, on a background."""

    objects: tuple[Object, ...]
    background: str

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background {self.background!r} is not one of {', '.join(BACKGROUNDS)}")
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(self.objects)}")
        if len({o.place for o in self.objects}) != len(self.objects):
            raise ValueError(f"two objects share a place: {[o.place for o in self.objects]}")
        ordered = tuple(sorted(self.objects, key=lambda o: PLACES.index(o.place)))
        if ordered != self.objects:
            object.__setattr__(self, "objects", ordered)  # one spelling per scene

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` is its inverse."""
        return {
            "background": self.background,
            "objects": [
                {"place": o.place, "shape": o.shape, "color": o.color, "size": o.size} for o in self.objects
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Scene":
        """The scene that `to_json` wrote."""
        return cls(tuple(Object(**o) for o in value["objects"]), value["background"])
