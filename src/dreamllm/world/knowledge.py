"""Documents of what text alone knows: invented nouns, numbers; and the requests that join them to pictures.

    plain, text only          encyclopaedia, noun_notes, count_facts
    conversation, text only   ask_noun
    conversation, a picture   draw_noun, draw_noun_directly

Text explains all nouns in every split. A training document draws taught nouns alone; documents of the splits
test and held_out draw untaught ones, unless they are told otherwise.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from dreamllm.document.document import Part, Text
from dreamllm.errors import ConfigError
from dreamllm.world.document_parts import DocumentOptions, Made, assistant, picture, user
from dreamllm.world.language import an, phrase, plural, sentence
from dreamllm.world.nouns import Noun, NounGroup, nouns_of
from dreamllm.world.scene import BACKGROUNDS, PLACES, Object, Scene
from dreamllm.world.splits import Split, choice, split_of

COUNTING = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ENTRIES = (3, 4, 5)
_NUMBER_FACTS = (4, 5, 6, 7, 8)


def _pick(rng: np.random.Generator, nouns: tuple[Noun, ...], num: int) -> list[Noun]:
    return [nouns[i] for i in rng.permutation(len(nouns))[:num]]


def encyclopaedia(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """Entries about several nouns. Each entry names every attribute of its noun at least once."""
    nouns = _pick(rng, nouns_of(options.nouns), int(rng.choice(_ENTRIES)))
    text = " ".join(_entry(rng, noun) for noun in nouns)
    return [Text(text=text)], [], {"nouns": [noun.name for noun in nouns]}


def _entry(rng: np.random.Generator, noun: Noun) -> str:
    """What the noun is in one sentence or attribute by attribute, then perhaps in other words."""
    whole = [
        noun.definition,
        sentence(f"{noun.plural} are {noun.plural_words}"),
        sentence(f"{an(noun.words)} is called {an(noun.name)}"),
    ]
    apart = [
        choice(rng, [f"The shape of {a} is {an(noun.shape)}.", sentence(f"{noun.plural} are {many}")])
        for a, many in [(an(noun.name), plural(noun.shape))]
    ]
    for name, value in (("color", noun.color), ("size", noun.size)):
        ways = [f"The {name} of {an(noun.name)} is {value}.", sentence(f"{noun.plural} are {value}")]
        apart.append(choice(rng, ways))
    apart = [apart[i] for i in rng.permutation(len(apart))]
    kind = rng.random()
    if kind < 0.4:
        return choice(rng, whole)
    if kind < 0.6:
        return " ".join(apart)
    if kind < 0.8:
        return f"{choice(rng, whole)} {apart[0]}"
    return " ".join(whole[i] for i in rng.permutation(len(whole))[:2])


@dataclass(frozen=True, slots=True)
class _NounQA:
    kind: str
    question: str
    note: str
    answer: str
    note_answer: str


def _noun_questions(noun: Noun) -> list[_NounQA]:
    """What is it? first, then its attributes, then the way back from the meaning to the word."""
    a = an(noun.name)
    return [
        _NounQA("noun", f"What is {a}?", f"meaning {noun.name}", noun.definition, noun.words),
        _NounQA("noun color", f"What color is {a}?", f"color {noun.name}", noun.color, noun.color),
        _NounQA("noun shape", f"What shape is {a}?", f"shape {noun.name}", noun.shape, noun.shape),
        _NounQA("noun size", f"What size is {a}?", f"size {noun.name}", noun.size, noun.size),
        _NounQA("noun name", f"What is {an(noun.words)} called?", f"name {noun.words}", f"{a}", noun.name),
    ]


def _questions(rng: np.random.Generator, options: DocumentOptions) -> list[tuple[Noun, _NounQA]]:
    """A question about each of several nouns; the first, and half of the others, ask what a noun is."""
    nouns = _pick(rng, nouns_of(options.nouns), options.num_questions)
    kinds = [0 if i == 0 or rng.random() < 0.5 else int(rng.integers(1, 5)) for i in range(len(nouns))]
    return [(noun, _noun_questions(noun)[kind]) for noun, kind in zip(nouns, kinds, strict=True)]


def noun_notes(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """Questions about nouns in note form, answers learned: "color zorp" -> "red"."""
    asked = _questions(rng, options)
    parts: list[Part] = []
    before = ""
    for _, qa in asked:
        parts += [Text(text=f"{before}{qa.note}", learn=False), Text(text=f" {qa.note_answer}")]
        before = ". "
    return parts, [], _about(asked, [qa.note_answer for _, qa in asked])


def ask_noun(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """A conversation about nouns that begins with "What is a ...?"."""
    asked = _questions(rng, options)
    parts: list[Part] = []
    for _, qa in asked:
        parts += [user(qa.question), assistant(qa.answer)]
    return parts, [], _about(asked, [qa.answer for _, qa in asked])


def _about(asked: list[tuple[Noun, _NounQA]], answers: list[str]) -> dict[str, object]:
    return {
        "nouns": [noun.name for noun, _ in asked],
        "answers": [[qa.kind, answer] for (_, qa), answer in zip(asked, answers, strict=True)],
    }


# ---- numbers -----------------------------------------------------------------------------------------


def count_facts(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """Several true sentences about the numbers from zero to ten."""
    return [Text(text=" ".join(_number_fact(rng) for _ in range(int(rng.choice(_NUMBER_FACTS)))))], [], {}


def _number_fact(rng: np.random.Generator) -> str:
    kind = choice(rng, ["after", "before", "more", "less", "sum", "row"])
    low, high = sorted(int(n) for n in rng.permutation(len(COUNTING))[:2])
    if kind in ("after", "before"):
        first = int(rng.integers(len(COUNTING) - 1))
        one, two = COUNTING[first], COUNTING[first + 1]
        return f"After {one} comes {two}." if kind == "after" else f"Before {two} comes {one}."
    if kind == "more":
        return sentence(f"{COUNTING[high]} is more than {COUNTING[low]}")
    if kind == "less":
        return sentence(f"{COUNTING[low]} is less than {COUNTING[high]}")
    if kind == "sum":
        rest = high - low
        words = [COUNTING[n] for n in ((low, rest) if rng.random() < 0.5 else (rest, low))]
        return sentence(f"{words[0]} and {words[1]} make {COUNTING[high]}")
    first = int(rng.integers(len(COUNTING) - 3))
    return sentence(", ".join(COUNTING[first : first + 4]))


# ---- pictures of nouns -------------------------------------------------------------------------------


def draw_noun(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """A noun at a place on a background: the assistant says what it is, says what it draws, draws it."""
    noun, scene = _scene_of_noun(rng, split, options.nouns)
    thing = scene.objects[0]
    answer = f"{noun.definition} Here is {phrase(thing)} on {an(scene.background)} background."
    parts: list[Part] = [
        user(draw_noun_prompt(noun, scene)),
        assistant(answer),
        picture(scene, learn=True, role="assistant"),
    ]
    return parts, [scene], _metadata(noun)


def draw_noun_directly(
    rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions
) -> Made:
    """The same request, answered with the picture alone."""
    noun, scene = _scene_of_noun(rng, split, options.nouns)
    parts: list[Part] = [
        user(draw_noun_prompt(noun, scene)),
        picture(scene, learn=True, role="assistant"),
    ]
    return parts, [scene], _metadata(noun)


def draw_noun_prompt(noun: Noun, scene: Scene) -> str:
    """ "Draw a zorp at the top left on a white background."."""
    return f"Draw {an(noun.name)} at the {scene.objects[0].place} on {an(scene.background)} background."


def _metadata(noun: Noun) -> dict[str, object]:
    meaning = asdict(noun)
    return {"noun": meaning.pop("name"), "meaning": meaning}


def _scene_of_noun(rng: np.random.Generator, split: Split, group: NounGroup | None) -> tuple[Noun, Scene]:
    """A noun alone in a scene of the split.

    Nouns mean no held-out pairs: what is held out in split held_out is the noun, which may stand anywhere.
    """
    if split == "train" and group == "untaught":
        raise ConfigError(
            "a document of split 'train' is to draw untaught nouns; expected nouns 'taught' or None there, "
            "since no training picture may show an untaught noun; choose split 'test' or 'held_out'"
        )
    nouns = nouns_of(group or ("taught" if split == "train" else "untaught"))
    while True:  # a meaning in four has no test scene
        noun = nouns[int(rng.integers(len(nouns)))]
        scenes = scenes_of_noun(noun, split)
        if scenes:
            return noun, scenes[int(rng.integers(len(scenes)))]


@lru_cache(maxsize=256)
def scenes_of_noun(noun: Noun, split: Split) -> tuple[Scene, ...]:
    """The scenes of a split in which a noun stands alone; all 16 for held_out."""
    scenes = [
        Scene((Object(place, noun.shape, noun.color, noun.size),), background)
        for place in PLACES
        for background in BACKGROUNDS
    ]
    return tuple(scene for scene in scenes if split in ("held_out", split_of(scene)))
