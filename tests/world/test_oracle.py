"""The least nats, against counting every scene and every caption one by one."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest

from dreamllm.errors import DocumentError
from dreamllm.world.documents import STYLE_SHARES, make_document
from dreamllm.world.language import CAPTION_STYLES, CaptionStyle, caption
from dreamllm.world.oracle import (
    NUM_SCENES,
    caption_nats,
    consistent_scenes,
    pair_nats,
    picture_nats,
    scene_nats,
    wording_nats,
)
from dreamllm.world.reading import Facts, read_text
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, SPLITS, Split, sample_scene, split_of

ONE_OBJECT = [
    Scene((Object(*values),), background)
    for *values, background in product(PLACES, SHAPES, COLORS, SIZES, BACKGROUNDS)
]


def every_scene_of(pairs: tuple[tuple[str, str], ...]) -> list[Scene]:
    """Scenes with exactly these pairs of shape and color, by going through sets of objects."""
    things = [Object(p, *pair, size) for p, pair, size in product(PLACES, sorted(set(pairs)), SIZES)]
    return [
        Scene(chosen, background)
        for chosen in combinations(things, len(pairs))
        if len({o.place for o in chosen}) == len(pairs)
        and Counter((o.shape, o.color) for o in chosen) == Counter(pairs)
        for background in BACKGROUNDS
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_scenes_of_a_split_are_counted_rightly(split: Split) -> None:
    """One object: all of them. More: the share of a sample, within four standard deviations."""
    assert sum(split_of(scene) == split for scene in ONE_OBJECT) == NUM_SCENES[split][1]  # type: ignore[index]
    rng = np.random.default_rng(0)
    for number, total in ((2, 117_600), (3, 5_488_000)):
        found = Counter(split_of(_scene_of_trained_pairs(rng, number)) for _ in range(4000))
        share = NUM_SCENES[split][number] / total  # type: ignore[index]
        assert abs(found[split] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)
        assert NUM_SCENES["train"][number] + NUM_SCENES["test"][number] == total


def _scene_of_trained_pairs(rng: np.random.Generator, number: int) -> Scene:
    """Uniform over all scenes of a number of objects without a held-out pair."""
    pairs = [pair for pair in product(SHAPES, COLORS) if pair not in HELD_OUT_PAIRS]
    things = [
        Object(PLACES[i], *pairs[int(rng.integers(len(pairs)))], SIZES[int(rng.integers(2))])
        for i in rng.permutation(4)[:number]
    ]
    return Scene(tuple(things), list(BACKGROUNDS)[int(rng.integers(4))])


@pytest.mark.parametrize("split", SPLITS)
def test_the_probabilities_of_all_scenes_of_one_object_sum_to_one(split: Split) -> None:
    nats = [scene_nats(s, split, num_objects=(1,)) for s in ONE_OBJECT if split_of(s) == split]

    assert sum(math.exp(-value) for value in nats) == pytest.approx(1)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_sampled_as_often_as_their_nats_say(split: Split) -> None:
    """Mean nats over samples estimate the entropy; number and held-out pairs are what nats depend on."""
    rng = np.random.default_rng(1)
    drawn = [sample_scene(rng, split) for _ in range(1000)]

    by_class: defaultdict[tuple[int, int], list[Scene]] = defaultdict(list)
    for scene in drawn:
        held = sum(split_of(Scene((o,), "white")) == "held_out" for o in scene.objects)
        by_class[len(scene.objects), held].append(scene)
    expected = {key: _num_in_class(*key, split) for key in by_class}
    for key, scenes in by_class.items():
        nats = {scene_nats(scene, split) for scene in scenes}
        assert max(nats) - min(nats) < 1e-9
        share = expected[key] * math.exp(-nats.pop())
        assert abs(len(scenes) / 1000 - share) < 4 * math.sqrt(share * (1 - share) / 1000)


def _num_in_class(number: int, held: int, split: Split) -> int:
    if split != "held_out":
        return NUM_SCENES[split][number]
    pairs = math.comb(number, held) * 5**held * 35 ** (number - held)
    return pairs * math.comb(4, number) * 2**number * 4


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_picture_after_a_caption_is_as_open_as_the_scenes_that_fit(split: Split, number: int) -> None:
    rng = np.random.default_rng(number)
    for _ in range(4):
        scene = sample_scene(rng, split, num_objects=number)
        text = caption(scene, "short", rng)
        pairs = tuple((o.shape, o.color) for o in scene.objects)
        fitting = [s for s in every_scene_of(pairs) if split_of(s) == split]

        assert consistent_scenes(read_text(text), split) == set(fitting)
        assert picture_nats(text, split) == pytest.approx(math.log(len(fitting)))
        in_order = [s for s in fitting if caption(s, "short") == caption(scene, "short")]
        assert picture_nats(caption(scene, "short"), split, is_in_order=True) == pytest.approx(
            math.log(len(in_order))
        )
        for style in ("full", "long"):
            assert picture_nats(caption(scene, style, rng), split) == 0.0  # type: ignore[arg-type]


def test_a_red_circle_may_stand_in_32_ways_less_those_of_the_test_split() -> None:
    """4 places, 2 sizes, 4 backgrounds."""
    every = every_scene_of((("circle", "red"),))
    num_test = sum(split_of(scene) == "test" for scene in every)

    assert len(every) == 32
    assert picture_nats("A red circle.", "train") == pytest.approx(math.log(32 - num_test))
    zorps = [s for s in every if s.objects[0].size == "large" and split_of(s) == "train"]
    assert picture_nats("Draw a zorp.", "train") == pytest.approx(math.log(len(zorps)))


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_wordings_of_a_caption_are_as_likely_as_their_nats_say(style: CaptionStyle) -> None:
    """Every order, form and empty place by hand: two stars alike and a circle."""
    scene = Scene(
        (
            Object("top left", "star", "red", "small"),
            Object("top right", "star", "red", "large"),
            Object("bottom left", "circle", "cyan", "small"),
        ),
        "black",
    )
    rng = np.random.default_rng(0)
    texts = Counter(caption(scene, style, rng) for _ in range(6000))

    assert len(texts) == {"short": 3, "full": 12, "long": 6 * 27}[style]
    shares = {text: math.exp(-wording_nats(text, scene, style)) for text in texts}
    assert sum(shares.values()) == pytest.approx(1)
    for text, count in texts.items():
        share = shares[text]
        assert abs(count / 6000 - share) < 4.5 * math.sqrt(share * (1 - share) / 6000)
    entropy = -sum(share * math.log(share) for share in shares.values())
    assert caption_nats(scene, style) == pytest.approx(entropy)


@pytest.mark.parametrize("split", SPLITS)
def test_draw_pairs_of_one_object_need_what_counting_all_of_them_says(split: Split) -> None:
    """p(caption) and p(picture | caption) from the table of all captions of all scenes of one object."""
    scenes = [scene for scene in ONE_OBJECT if split_of(scene) == split]
    joint: defaultdict[str, dict[Scene, Fraction]] = defaultdict(dict)
    for scene in scenes:
        (thing,) = scene.objects
        full = f"a {thing.size} {thing.color} {thing.shape} at the {thing.place}"
        ground = "an" if scene.background[0] in "aeiou" else "a"
        p = Fraction(1, len(scenes))
        joint[caption(scene, "short")][scene] = p * Fraction(15, 100)
        joint[f"{full.capitalize()} on {ground} {scene.background} background."][scene] = p * Fraction(
            35, 100
        )
        joint[f"On {ground} {scene.background} background, there is {full}."][scene] = p * Fraction(15, 100)
    assert sum(sum(row.values()) for row in joint.values()) == Fraction(65, 100)

    rng = np.random.default_rng(7)
    num_checked = 0
    for _ in range(60):
        document = make_document("draw_pair", rng, split=split, num_objects=(1,))
        if document.metadata["style"] == "long":
            continue
        num_checked += 1
        nats = pair_nats(document, split, num_objects=(1,))
        row = joint[document.text]
        scene = Scene.from_json(document.metadata["scenes"][0])
        assert nats.text == pytest.approx(-math.log(sum(row.values())))
        assert nats.picture == pytest.approx(-math.log(row[scene] / sum(row.values())), abs=1e-9)
    assert num_checked > 20


@pytest.mark.parametrize("kind", ["draw_pair", "read_pair"])
def test_a_pair_needs_no_less_and_no_more_than_its_parts_together(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        document = make_document(kind, rng, split="test")  # type: ignore[arg-type]
        scene, style = Scene.from_json(document.metadata["scenes"][0]), document.metadata["style"]
        nats = pair_nats(document, "test")
        wording = wording_nats(document.text, scene, style) if kind == "draw_pair" else 0.0
        assert nats.text + nats.picture == pytest.approx(
            scene_nats(scene, "test") - math.log(STYLE_SHARES[style]) + wording
        )
        assert min(nats.text, nats.picture) >= 0
        if kind == "read_pair":
            assert nats.text == pytest.approx(-math.log(STYLE_SHARES[style]))
        elif style == "short":
            assert nats.picture > 1
        else:
            assert nats.picture == 0


def test_open_texts_other_kinds_and_other_splits_are_errors() -> None:
    scene = next(scene for scene in ONE_OBJECT if split_of(scene) == "train")
    rng = np.random.default_rng(0)

    with pytest.raises(DocumentError, match="does not name all objects"):
        consistent_scenes(Facts(), "train")
    with pytest.raises(DocumentError, match="leaves a shape or a color open"):
        picture_nats("Zorps are red.", "train")
    with pytest.raises(DocumentError, match=r"no scene of split train fits 'A purple circle\.'"):
        picture_nats("A purple circle.", "train")
    with pytest.raises(DocumentError, match="is of split train; expected split test"):
        scene_nats(scene, "test")
    with pytest.raises(DocumentError, match="of kind 'story'; the least nats are known of"):
        pair_nats(make_document("story", rng), "train")


def test_objects_of_one_look_in_any_order_count_once() -> None:
    """Two red circles: 6 pairs of places, 2 x 2 sizes, 4 backgrounds are 96 scenes, not twice as many."""
    scenes = {
        scene
        for split in SPLITS
        for scene in consistent_scenes(read_text("A red circle and a red circle."), split)
    }

    assert len(scenes) == 96
    distinct = {
        scene
        for split in SPLITS
        for scene in consistent_scenes(read_text("A red circle and a red star."), split)
    }
    assert len(distinct) == len(list(permutations(PLACES, 2))) * 4 * 4
