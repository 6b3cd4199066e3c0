"""How far a picture, or another text, agrees with what a text asserts.

Every attribute is counted apart, as (right, asserted). What is asserted decides the denominator: a short
caption says nothing of sizes, so sizes are not counted. Asserted objects are matched with seen ones so that
the most is right; whatever is unclear in a picture is wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from dreamllm.world.judge import Reading
from dreamllm.world.reading import Facts, ObjectFacts
from dreamllm.world.scene import PLACES

Attribute = Literal["shape", "color", "size", "place", "binding", "count", "background", "relation"]
ATTRIBUTES: tuple[Attribute, ...] = (
    "shape",
    "color",
    "size",
    "place",
    "binding",
    "count",
    "background",
    "relation",
)
"""`binding`: shape and colour of one object together. `count`: as many objects as asserted; more are wrong
only where the text claims to name all. `relation`: left, right, above, below between objects with places."""

_OWN: tuple[Attribute, ...] = ("shape", "color", "size", "place")


class Count(NamedTuple):
    """How much of what was asserted is right."""

    right: int
    asserted: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of every attribute, in the order of ATTRIBUTES; (0, 0) where nothing was asserted."""

    counts: dict[Attribute, Count]

    @property
    def all_correct(self) -> bool:
        """Whether something was asserted and nothing of it is wrong."""
        total = [sum(column) for column in zip(*self.counts.values(), strict=True)]
        return total[0] == total[1] > 0


def agreement(facts: Facts, found: Reading | Facts) -> Agreement:
    """How much of what `facts` assert is in a picture as the judge read it, or is said by another text."""
    objects, background, has_unclear = _seen(found)
    matched = _match(facts.objects, objects)
    pairs = list(zip(facts.objects, matched, strict=True))
    counts: dict[Attribute, Count] = {name: _count(_own_checks(name, pairs)) for name in _OWN}
    counts["binding"] = _count(_binds(said, seen) for said, seen in pairs if said.shape and said.color)
    counts["count"] = Count(0, 0)
    if facts.objects or facts.is_complete:
        num_said, num_seen = len(facts.objects), len(objects)
        fits = num_seen == num_said and not has_unclear if facts.is_complete else num_seen >= num_said
        counts["count"] = Count(int(fits), 1)
    counts["background"] = _count([background == facts.background] if facts.background else [])
    counts["relation"] = _count(_relation_checks(pairs))
    return Agreement(counts)


def _seen(found: Reading | Facts) -> tuple[tuple[ObjectFacts, ...], str | None, bool]:
    """Objects that are certainly there, the background, and whether there is more that is unclear."""
    if isinstance(found, Facts):
        return found.objects, found.background, False
    objects = tuple(
        ObjectFacts(cell.shape, cell.color, cell.size, cell.place)
        for cell in found.cells
        if cell.state == "object"
    )
    return objects, found.background, any(cell.state == "unclear" for cell in found.cells)


_Pairs = Sequence[tuple[ObjectFacts, ObjectFacts | None]]


def _count(checks: Iterable[bool]) -> Count:
    results = list(checks)
    return Count(sum(results), len(results))


def _own_checks(name: Attribute, pairs: _Pairs) -> list[bool]:
    return [
        seen is not None and getattr(seen, name) == value
        for said, seen in pairs
        if (value := getattr(said, name)) is not None
    ]


def _binds(said: ObjectFacts, seen: ObjectFacts | None) -> bool:
    return seen is not None and (said.shape, said.color) == (seen.shape, seen.color)


def _relation_checks(pairs: _Pairs) -> Iterator[bool]:
    """For each axis on which two asserted objects differ: whether the seen ones stand the same way round."""
    for (said_a, seen_a), (said_b, seen_b) in combinations(pairs, 2):
        for coordinate in (_column, _row):
            said = _order(said_a, said_b, coordinate)
            if said:
                yield seen_a is not None and seen_b is not None and _order(seen_a, seen_b, coordinate) == said


def _row(place: str) -> int:
    return PLACES.index(place) // 2


def _column(place: str) -> int:
    return PLACES.index(place) % 2


def _order(a: ObjectFacts, b: ObjectFacts, coordinate: Callable[[str], int]) -> int:
    """-1, 0 or 1 as a stands before, level with or after b; 0 where a place is unknown."""
    if a.place is None or b.place is None:
        return 0
    return coordinate(b.place) - coordinate(a.place)


def _match(said: Sequence[ObjectFacts], seen: Sequence[ObjectFacts]) -> tuple[ObjectFacts | None, ...]:
    """The seen object of each asserted one, no seen object twice, so that most is right in all.

    Goes through the asserted objects and keeps the best way to have used up each set of seen ones. Equal ways
    are told apart by the most places right.
    """
    best: dict[frozenset[int], tuple[tuple[int, int], tuple[int | None, ...]]] = {frozenset(): ((0, 0), ())}
    for thing in said:
        extended: dict[frozenset[int], tuple[tuple[int, int], tuple[int | None, ...]]] = {}
        for used, ((score, places), chosen) in best.items():
            options: list[int | None] = [i for i in range(len(seen)) if i not in used]
            for option in [*options, None]:
                gain, place = (0, 0) if option is None else _fit(thing, seen[option])
                key = used if option is None else used | {option}
                total = (score + gain, places + place)
                if key not in extended or total > extended[key][0]:
                    extended[key] = (total, (*chosen, option))
        best = extended
    _, chosen = max(best.values(), key=lambda way: way[0])
    return tuple(None if option is None else seen[option] for option in chosen)


def _fit(said: ObjectFacts, seen: ObjectFacts) -> tuple[int, int]:
    """How many asserted attributes are right, a bound pair counting once more, and whether the place is."""
    right = [getattr(said, name) == getattr(seen, name) for name in _OWN if getattr(said, name) is not None]
    binds = said.shape is not None and said.color is not None and _binds(said, seen)
    return sum(right) + binds, int(said.place is not None and said.place == seen.place)
