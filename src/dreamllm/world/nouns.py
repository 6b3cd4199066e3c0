"""Invented nouns: words that mean a size, a color and a shape, and that text alone explains.

64 nouns, each with a meaning of its own out of the trained pairs of shape and color; the table is fixed for
good. Of `UNTAUGHT` nouns no training document shows a picture: whoever draws one joins what it read to what
it can draw.
"""

from dataclasses import dataclass
from typing import Literal

from dreamllm.errors import ConfigError
from dreamllm.world.language import an, plural

NounGroup = Literal["taught", "untaught"]


@dataclass(frozen=True, slots=True)
class Noun:
    """An invented noun and what it means."""

    name: str
    size: str
    color: str
    shape: str

    @property
    def plural(self) -> str:
        """ "zorps"."""
        return f"{self.name}s"

    @property
    def words(self) -> str:
        """ "large red circle"."""
        return f"{self.size} {self.color} {self.shape}"

    @property
    def plural_words(self) -> str:
        """ "large red circles"."""
        return f"{self.size} {self.color} {plural(self.shape)}"

    @property
    def definition(self) -> str:
        """ "A zorp is a large red circle."."""
        return f"{an(self.name).capitalize()} is {an(self.words)}."


def _table(rows: str) -> tuple[Noun, ...]:
    return tuple(Noun(*row.split()) for row in rows.strip().splitlines())


TAUGHT = _table("""
    vom small blue star
    zimp small purple star
    plunt small cyan circle
    stuv large red star
    nilp small green square
    mamol large orange cross
    belm small yellow star
    empok small red circle
    yirp large cyan circle
    menk large pink circle
    wolg small cyan star
    tolva large blue square
    fapem small blue circle
    keenk small yellow circle
    vasp large green cross
    hazub large blue circle
    gribol large pink square
    prook large yellow star
    brisko small blue cross
    fizut large purple cross
    rutep large cyan cross
    lerag small green triangle
    yoluk small purple cross
    pemlo small pink triangle
    gorf small red square
    lufta large orange circle
    vunt large orange square
    tiznu large pink triangle
    flodam small orange cross
    juvig large orange triangle
    dubon small blue square
    wug large yellow cross
    olun large cyan triangle
    dworp large cyan star
    somb large green triangle
    gikot small cyan triangle
    udrik large purple square
    pagir large red square
    rilk large red triangle
    chulg small orange circle
    honep small red triangle
    gedop small green cross
    treb large orange star
    korb large purple star
    krelt large green square
    glip small pink circle
    kiv small orange triangle
    jarn large yellow circle
""")
"""Nouns that training documents explain and draw."""

UNTAUGHT = _table("""
    zorp large red circle
    nadri large red cross
    zwib small orange square
    pavik small orange star
    migum large yellow triangle
    nesk small yellow cross
    trulk small green circle
    slarn large green circle
    roosk small cyan cross
    snusk small cyan square
    drepeb large blue star
    hoolm large blue cross
    sumef large purple triangle
    bagat small purple triangle
    kumet large pink star
    bukib small pink square
""")
"""Nouns that training documents explain and never draw; their meanings are balanced."""

NOUNS = TAUGHT + UNTAUGHT
_BY_NAME = {noun.name: noun for noun in NOUNS}


def noun_named(name: str) -> Noun:
    """The noun of a name in the singular.

    Raises:
        ConfigError: there is none.
    """
    if name not in _BY_NAME:
        raise ConfigError(f"{name!r} is no invented noun; expected one of {', '.join(_BY_NAME)}; correct it")
    return _BY_NAME[name]


def nouns_of(group: NounGroup | None) -> tuple[Noun, ...]:
    """The nouns of a group, or all of them."""
    if group is None:
        return NOUNS
    return TAUGHT if group == "taught" else UNTAUGHT
