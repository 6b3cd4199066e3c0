"""The least nats a model can need: entropies that are exact because the sampler of the world is known.

A scene decides its picture and its probability is known, so that pictures and captions have exact nats:

    -log p(scene)             a picture with nothing before it
    -log p(scene | caption)   a picture after its caption: 0 for styles full and long
    -log p(caption)           a caption with nothing before it: style, wording and what it leaves open count
    -log p(caption | scene)   a caption after its picture

What a model needs above these is its excess. They hold where a model knows the kind of document and the
split; what it spends on telling kinds apart is its own. Pair documents are covered; texts of other kinds are
not, since several ways lead to the same text of theirs.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Literal

from dreamllm.document.document import Document, Text
from dreamllm.errors import DocumentError
from dreamllm.world.documents import STYLE_SHARES
from dreamllm.world.language import INVERTED_SHARE, NUM_NARRATIVE_FORMS, CaptionStyle, caption
from dreamllm.world.reading import Facts, ObjectFacts, read_text
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, Split, split_of

NUM_SCENES: dict[Literal["train", "test"], dict[int, int]] = {
    "train": {1: 1022, 2: 105_753, 3: 4_939_630},
    "test": {1: 98, 2: 11_847, 3: 548_370},
}
"""Scenes of a split by their number of objects, counted one by one: 1120, 117 600 and 5 488 000 in all."""

_PER_PLACE = len(SHAPES) * len(COLORS) * len(SIZES)


def scene_nats(scene: Scene, split: Split, *, num_objects: tuple[int, ...] = (1, 2, 3)) -> float:
    """-log of the probability that `sample_scene(rng, split, num_objects=num_objects)` gives the scene.

    Raises:
        DocumentError: it never does.
    """
    number = len(scene.objects)
    if split_of(scene) != split or number not in num_objects:
        raise DocumentError(
            f"{scene} with {number} objects is of split {split_of(scene)}; expected split {split} and "
            f"{num_objects} objects; name the split and the numbers it was made with"
        )
    share = num_objects.count(number) / len(num_objects)
    frames = math.comb(len(PLACES), number) * len(BACKGROUNDS)
    if split == "held_out":  # one object, drawn uniformly, was given a held-out pair in place of its own
        held_out = sum((o.shape, o.color) in HELD_OUT_PAIRS for o in scene.objects)
        rest = len(HELD_OUT_PAIRS) * len(SIZES) * _PER_PLACE ** (number - 1)
        return -math.log(share * held_out / number / rest / frames)
    accepted = sum(_share_of_split(n, split) for n in num_objects) / len(num_objects)
    return -math.log(share / frames / _PER_PLACE**number / accepted)


def _share_of_split(number: int, split: Literal["train", "test"]) -> float:
    """Share of a split among all scenes of a number of objects, held-out pairs included."""
    return NUM_SCENES[split][number] / (
        math.comb(len(PLACES), number) * len(BACKGROUNDS) * _PER_PLACE**number
    )


def consistent_scenes(facts: Facts, split: Split, *, is_in_order: bool = False) -> frozenset[Scene]:
    """Every scene of a split of which the facts hold.

    With `is_in_order` the facts name objects in the order of PLACES, as captions without a generator do.

    Raises:
        DocumentError: the facts do not claim to be complete, so that they bound no number of objects.
    """
    if not facts.is_complete:
        raise DocumentError(
            f"{facts} does not name all objects; expected complete facts; give the whole text"
        )
    number = len(facts.objects)
    orders = combinations(PLACES, number) if is_in_order else permutations(PLACES, number)
    grounds = [facts.background] if facts.background else list(BACKGROUNDS)
    found = {
        Scene(things, ground)
        for places in orders
        for things in product(*map(_candidates, facts.objects, places))
        for ground in grounds
    }
    return frozenset(scene for scene in found if split_of(scene) == split)


def _candidates(said: ObjectFacts, place: str) -> list[Object]:
    """Objects at a place that are as said."""
    if said.place not in (None, place):
        return []
    return [
        Object(place, shape, color, size)
        for shape in ([said.shape] if said.shape else SHAPES)
        for color in ([said.color] if said.color else COLORS)
        for size in ([said.size] if said.size else SIZES)
    ]


@lru_cache(maxsize=4096)
def picture_nats(text: str, split: Split, *, is_in_order: bool = False) -> float:
    """-log p(scene | caption), the same for every scene of the split that the caption fits.

    The sampler prefers none of them: they have as many objects, and as many of them with held-out pairs.

    Raises:
        GrammarError: the text is no text of the world.
        DocumentError: an object's shape or color is left open, or no scene of the split fits.
    """
    facts = read_text(text)
    if not facts.objects or not all(o.shape and o.color for o in facts.objects):
        raise DocumentError(
            f"{text!r} leaves a shape or a color open; expected both of each object; say them"
        )
    scenes = consistent_scenes(facts, split, is_in_order=is_in_order)
    if not scenes:
        raise DocumentError(
            f"no scene of split {split} fits {text!r}; expected one or more; correct the split"
        )
    return math.log(len(scenes))


def caption_nats(scene: Scene, style: CaptionStyle) -> float:
    """-log p(caption | scene, style) of a caption made with a generator, its order and wording random.

    In style full this is the mean over its two wordings; `wording_nats` has the nats of a given text.
    """
    number = len(scene.objects)
    nats = math.log(math.factorial(number) / _repeats(scene) if style == "short" else math.factorial(number))
    if style == "full":
        shares = (INVERTED_SHARE, 1 - INVERTED_SHARE)
        return nats - sum(share * math.log(share) for share in shares)
    if style == "long":
        return nats + number * math.log(NUM_NARRATIVE_FORMS) + math.log(len(PLACES) - number)
    return nats


def wording_nats(text: str, scene: Scene, style: CaptionStyle) -> float:
    """-log p(text | scene, style) of a caption made with a generator."""
    nats = caption_nats(scene, style)
    if style != "full":
        return nats
    share = INVERTED_SHARE if text.startswith("On ") else 1 - INVERTED_SHARE
    return math.log(math.factorial(len(scene.objects))) - math.log(share)


def _repeats(scene: Scene) -> int:
    """Orders of the objects that a short caption cannot tell apart."""
    alike = Counter((o.shape, o.color) for o in scene.objects)
    return math.prod(math.factorial(count) for count in alike.values())


@dataclass(frozen=True, slots=True)
class PairNats:
    """The least nats of a document with one caption and one picture, each given what stands before it."""

    text: float
    picture: float


def pair_nats(document: Document, split: Split, *, num_objects: tuple[int, ...] = (1, 2, 3)) -> PairNats:
    """The least nats of a `draw_pair` (caption, then picture) or a `read_pair` (picture, then caption).

    Raises:
        DocumentError: the document is of another kind, or not of this split and these numbers of objects.
    """
    kind = document.metadata.get("kind")
    if kind not in ("draw_pair", "read_pair"):
        raise DocumentError(
            f"document {document.id!r} is of kind {kind!r}; the least nats are known of 'draw_pair' and "
            "'read_pair'; give one of these"
        )
    scene = Scene.from_json(document.metadata["scenes"][0])
    style: CaptionStyle = document.metadata["style"]
    of_scene = scene_nats(scene, split, num_objects=num_objects)
    of_style = -math.log(STYLE_SHARES[style])
    (text,) = (part.text for part in document if isinstance(part, Text))
    if kind == "read_pair":  # the wording is the canonical one: only the style is open
        if text != caption(scene, style):
            raise DocumentError(f"{text!r} is not how the world captions {scene}; expected its own text")
        return PairNats(text=of_style, picture=of_scene)
    picture = picture_nats(text, split)
    together = of_style + of_scene + wording_nats(text, scene, style)
    return PairNats(text=together - picture, picture=picture)
