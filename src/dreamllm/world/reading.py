"""Words -> facts: what a text of the world asserts about its picture.

The grammar of `language.py` and `documents.py`, read backwards. Sentences of change ("The circle at the top
left turns green.") change the facts of the text before. A sentence outside the grammar is an error, so that a
model that babbles is never given the benefit of the doubt.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from dreamllm.errors import DocumentError
from dreamllm.world.language import NUMBERS, plural
from dreamllm.world.nouns import NOUNS, noun_named
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene


class GrammarError(DocumentError):
    """A sentence the grammar of the world does not know, or that speaks of a thing that is not there."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What is said of one object; None where nothing is said."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text asserts about the picture that follows it."""

    objects: tuple[ObjectFacts, ...] = ()
    background: str | None = None
    is_complete: bool = False
    """Whether the text lists all objects, so that one more in the picture contradicts it."""

    @classmethod
    def of(cls, scene: Scene) -> "Facts":
        """Everything that is true of a scene."""
        objects = tuple(ObjectFacts(o.shape, o.color, o.size, o.place) for o in scene.objects)
        return cls(objects, scene.background, is_complete=True)


def read_text(text: str, before: Facts | None = None) -> Facts:
    """The facts after a paragraph, given the facts before it.

    Raises:
        GrammarError: a sentence is outside the grammar, or refers to an object that the facts do not hold.
    """
    facts = before or Facts()
    for sentence in re.findall(r"[^.]+\.?", text.strip()):
        if sentence.strip():
            match, apply = _parse(sentence.strip())
            facts = apply(match, facts)
    return facts


def shows_something(sentence: str) -> bool:
    """Whether an illustrated document has a picture after this sentence.

    A title, an ending, "Nothing changes for a while.", what a noun means and a sentence outside the grammar
    show nothing new.
    """
    try:
        _, apply = _parse(sentence.strip())
    except GrammarError:
        return False
    return apply not in (_keep, _define)


def _parse(sentence: str) -> tuple[re.Match[str], Callable[[re.Match[str], Facts], Facts]]:
    """The rule a sentence follows."""
    words = re.sub(r"^(?:Then|Next|After that|First|Second|Third),? ", "", sentence.rstrip("."))
    for pattern, apply in _RULES:
        match = pattern.fullmatch(words[:1].upper() + words[1:])
        if match:
            return match, apply
    raise GrammarError(f"the world's grammar has no sentence {sentence!r}")


_ANY = {
    "shape": f"(?P<shape>{'|'.join(SHAPES)})",
    "color": f"(?P<color>{'|'.join(COLORS)})",
    "size": f"(?P<size>{'|'.join(SIZES)})",
    "place": f"(?P<place>{'|'.join(PLACES)})",
    "background": f"(?P<background>{'|'.join(BACKGROUNDS)})",
    "number": f"(?P<number>{'|'.join(NUMBERS)})",
    "noun": f"(?P<noun>{'|'.join(noun.name for noun in NOUNS)})",
}
_PHRASE = re.compile(
    f"an? (?:(?:{_ANY['size']} )?{_ANY['color']} {_ANY['shape']}|{_ANY['noun']})(?: at the {_ANY['place']})?",
    re.IGNORECASE,
)
_PHRASE_ANYWHERE = re.sub(r"\?P<\w+>", "?:", _PHRASE.pattern)
_LIST = f"(?P<list>{_PHRASE_ANYWHERE}(?:, {_PHRASE_ANYWHERE})*(?: and {_PHRASE_ANYWHERE})?)"


def _phrases(words: str) -> tuple[ObjectFacts, ...]:
    return tuple(_phrase(match) for match in _PHRASE.finditer(words))


def _phrase(match: re.Match[str]) -> ObjectFacts:
    """An invented noun says what it means."""
    if match["noun"]:
        noun = noun_named(match["noun"].lower())
        return ObjectFacts(noun.shape, noun.color, noun.size, match["place"])
    size = match["size"] and match["size"].lower()
    return ObjectFacts(match["shape"].lower(), match["color"].lower(), size, match["place"])


def _describe(match: re.Match[str], facts: Facts) -> Facts:
    """A caption says everything anew."""
    background = match.groupdict().get("background")
    return Facts(_phrases(match["list"]), background and background.lower(), is_complete=True)


def _start(match: re.Match[str], facts: Facts) -> Facts:
    return Facts((), match["background"])


def _number(match: re.Match[str], facts: Facts) -> Facts:
    return replace(facts, is_complete=True)


def _introduce(match: re.Match[str], facts: Facts) -> Facts:
    said = {key: value and value.lower() for key, value in match.groupdict().items()}
    return replace(facts, objects=(*facts.objects, ObjectFacts(**said)))


def _say_more(match: re.Match[str], facts: Facts) -> Facts:
    """A sentence about the object introduced last."""
    if not facts.objects:
        raise GrammarError(f"{match[0]!r} speaks of an object before one was introduced")
    return replace(facts, objects=(*facts.objects[:-1], replace(facts.objects[-1], **match.groupdict())))


def _add(match: re.Match[str], facts: Facts) -> Facts:
    return replace(facts, objects=facts.objects + _phrases(match["list"]), is_complete=True)


def _build_first(match: re.Match[str], facts: Facts) -> Facts:
    return Facts(_phrases(match["list"]), match["background"], is_complete=True)


def _change(match: re.Match[str], facts: Facts) -> Facts:
    """Change or remove the object that "the circle at the top left" names."""
    index = _find(match, facts)
    change = {
        key.removeprefix("new_"): value for key, value in match.groupdict().items() if key.startswith("new_")
    }
    kept = () if match.groupdict().get("gone") else (replace(facts.objects[index], **change),)
    return replace(facts, objects=(*facts.objects[:index], *kept, *facts.objects[index + 1 :]))


def _find(match: re.Match[str], facts: Facts) -> int:
    for index, thing in enumerate(facts.objects):
        if thing.shape == match["shape"] and thing.place == match["place"]:
            return index
    raise GrammarError(f"there is no {match['shape']} at the {match['place']} for {match[0]!r}")


def _change_background(match: re.Match[str], facts: Facts) -> Facts:
    return replace(facts, background=match["background"])


def _define(match: re.Match[str], facts: Facts) -> Facts:
    """What a noun is said to mean, right or wrong: one thing that has no place yet."""
    said = {key: value.lower() for key, value in match.groupdict().items() if value and key in _MEANING}
    if "shapes" in match.groupdict() and match["shapes"]:
        said["shape"] = _SINGULAR[match["shapes"]]
    return Facts((ObjectFacts(**said),))


def _keep(match: re.Match[str], facts: Facts) -> Facts:
    return facts


_THE = f"[Tt]he {_ANY['shape']} at the {_ANY['place']}"
_MEANING = ("size", "color", "shape")
_SINGULAR = {plural(shape): shape for shape in SHAPES}
_SHAPES = f"(?P<shapes>{'|'.join(_SINGULAR)})"
_NOUN = f"(?:{'|'.join(noun.name for noun in NOUNS)})"
_NOUNS = f"(?:{'|'.join(noun.plural.capitalize() for noun in NOUNS)})"
_THING = f"(?i:{_ANY['size']} {_ANY['color']} {_ANY['shape']})"
_GROUND = f"on an? {_ANY['background']} background"
_Rule = tuple[re.Pattern[str], Callable[[re.Match[str], Facts], Facts]]
_RULES: tuple[_Rule, ...] = tuple(
    (re.compile(pattern), apply)
    for pattern, apply in (
        # captions
        (f"(?i:{_LIST}(?: {_GROUND})?)", _describe),
        (f"On an? {_ANY['background']} background, there is {_LIST}", _describe),
        # narratives
        (f"The picture has an? {_ANY['background']} background", _start),
        (f"It shows {_ANY['number']} shapes?", _number),
        (f"At the {_ANY['place']} there is an? {_ANY['shape']}", _introduce),
        (f"It is {_ANY['size']} and its color is {_ANY['color']}", _say_more),
        (f"The {_ANY['place']} holds an? {_ANY['size']} {_ANY['shape']}", _introduce),
        (f"The color of this shape is {_ANY['color']}", _say_more),
        (f"An? (?i:{_ANY['color']}) shape stands at the {_ANY['place']}", _introduce),
        (f"This shape is an? {_ANY['size']} {_ANY['shape']}", _say_more),
        (f"Nothing is at the (?:{'|'.join(PLACES)})", _keep),
        # requests and answers about nouns
        (f"(?:Draw|Here is) {_LIST}(?: {_GROUND})?", _describe),
        (f"An? {_NOUN} is an? {_THING}", _define),
        (f"An? {_THING} is called an? {_NOUN}", _define),
        (f"{_NOUNS} are {_ANY['size']} {_ANY['color']} {_SHAPES}", _define),
        (f"{_NOUNS} are (?:{_ANY['size']}|{_ANY['color']}|{_SHAPES})", _define),
        (f"The color of an? {_NOUN} is {_ANY['color']}", _define),
        (f"The size of an? {_NOUN} is {_ANY['size']}", _define),
        (f"The shape of an? {_NOUN} is an? {_ANY['shape']}", _define),
        # guides
        (f"How to (?:draw|make a picture of) {_LIST}", _keep),
        (f"(?:A guide to drawing|One step to draw|(?:Two|Three) steps to draw) {_LIST}", _keep),
        (f"Step (?:one|two|three): take an? {_ANY['background']} background and draw {_LIST}", _build_first),
        (f"Step one: begin with an? {_ANY['background']} background and put {_LIST} on it", _build_first),
        (f"Step one: paint an? {_ANY['background']} background, then draw {_LIST}", _build_first),
        (f"Step (?:one|two|three): (?:add|now draw) {_LIST}", _add),
        (f"Step (?:two|three): put {_LIST} beside the rest", _add),
        # stories
        (f"(?i:{_LIST}) appears", _add),
        (f"{_THE} turns (?P<new_color>{'|'.join(COLORS)})", _change),
        (f"{_THE} becomes (?P<new_size>{'|'.join(SIZES)})", _change),
        (f"{_THE} moves to the (?P<new_place>{'|'.join(PLACES)})", _change),
        (f"{_THE} (?P<gone>disappears)", _change),
        (f"The background turns {_ANY['background']}", _change_background),
        ("This is the story of (?:one|two|three) pictures", _keep),
        ("Here are (?:one|two|three) pictures", _keep),
        ("Nothing changes for a while", _keep),
        ("(?:The end|The drawing is done|These are all the pictures|Here it is)", _keep),
        ("(?:Now the picture is complete|That was the last step|You are done)", _keep),
    )
)
