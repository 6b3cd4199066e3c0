"""Invented nouns: a fixed table, and documents of which only text knows the untaught ones."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError
from dreamllm.world.documents import ALL_DOCUMENT_KINDS, DOCUMENT_KINDS, DocumentKind, make_document
from dreamllm.world.knowledge import COUNTING, scenes_of_noun
from dreamllm.world.nouns import NOUNS, TAUGHT, UNTAUGHT, noun_named
from dreamllm.world.reading import Facts, ObjectFacts, read_text
from dreamllm.world.scene import COLORS, SHAPES, SIZES, Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, SPLITS, Split, split_of

TEXT_ONLY: tuple[DocumentKind, ...] = ("encyclopaedia", "noun_notes", "count_facts", "ask_noun")
DRAWN: tuple[DocumentKind, ...] = ("draw_noun", "draw_noun_directly")
ANY_NOUN = re.compile(rf"\b({'|'.join(noun.name for noun in NOUNS)})s?\b", re.IGNORECASE)


def documents(kind: DocumentKind, split: Split = "train", num: int = 60) -> list[Document]:
    rng = np.random.default_rng([2, ALL_DOCUMENT_KINDS.index(kind), SPLITS.index(split)])
    return [make_document(kind, rng, split=split) for _ in range(num)]


def test_there_are_64_nouns_and_of_16_no_training_picture_is_shown() -> None:
    assert (len(TAUGHT), len(UNTAUGHT), len({noun.name for noun in NOUNS})) == (48, 16, 64)
    assert (UNTAUGHT[0].name, UNTAUGHT[0].words) == ("zorp", "large red circle")


def test_no_noun_is_a_prefix_of_another_or_a_word_of_the_grammar() -> None:
    rng = np.random.default_rng(0)
    words = {
        word
        for kind in DOCUMENT_KINDS
        for _ in range(20)
        for word in re.findall(r"[a-z]+", make_document(kind, rng).text.lower())
    } | set(COUNTING)
    names = [noun.name for noun in NOUNS]

    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]
    assert not {name for name in names if any(name in (word, f"{word}s", word[:-1]) for word in words)}
    assert all(re.fullmatch("[a-z]{3,6}", name) and not name.endswith("s") for name in names)


def test_every_meaning_is_its_own_and_of_a_trained_pair() -> None:
    meanings = [(noun.size, noun.color, noun.shape) for noun in NOUNS]

    assert len(set(meanings)) == 64
    assert all(size in SIZES and color in COLORS and shape in SHAPES for size, color, shape in meanings)
    assert not [noun for noun in NOUNS if (noun.shape, noun.color) in HELD_OUT_PAIRS]


def test_untaught_nouns_mean_every_attribute_about_as_often_and_have_test_scenes() -> None:
    assert Counter(noun.color for noun in UNTAUGHT) == dict.fromkeys(COLORS, 2)
    assert Counter(noun.size for noun in UNTAUGHT) == dict.fromkeys(SIZES, 8)
    assert set(Counter(noun.shape for noun in UNTAUGHT).values()) == {3, 4}
    assert all(scenes_of_noun(noun, "test") for noun in UNTAUGHT)


def test_an_unknown_noun_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'circle' is no invented noun; expected one of vom, zimp"):
        noun_named("circle")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", TEXT_ONLY)
def test_what_text_alone_knows_comes_without_pictures_and_scenes(kind: DocumentKind, split: Split) -> None:
    for document in documents(kind, split, num=5):
        assert not document.images
        assert document.metadata["scenes"] == []


@pytest.mark.parametrize("kind", [kind for kind in ALL_DOCUMENT_KINDS if kind not in TEXT_ONLY])
def test_no_training_document_with_a_picture_names_an_untaught_noun(kind: DocumentKind) -> None:
    untaught = {noun.name for noun in UNTAUGHT}

    for document in documents(kind, num=200 if kind in DRAWN else 10):
        named = {name.lower() for name in ANY_NOUN.findall(document.text)}
        assert not named & untaught
        assert bool(named) == (kind in DRAWN)


def test_the_encyclopaedia_explains_every_noun_and_says_nothing_false() -> None:
    explained: defaultdict[str, set[str]] = defaultdict(set)
    for document in documents("encyclopaedia", num=150):
        for sentence in re.findall(r"[^.]+\.", document.text):
            names = {name.lower() for name in ANY_NOUN.findall(sentence)}
            assert len(names) == 1
            noun = noun_named(names.pop())
            (said,) = read_text(sentence).objects
            for attribute in ("size", "color", "shape"):
                if getattr(said, attribute) is not None:
                    assert getattr(said, attribute) == getattr(noun, attribute), sentence
                    explained[noun.name].add(attribute)

    assert len(explained) == 64
    assert set(map(len, explained.values())) == {3}


def test_an_entry_of_the_encyclopaedia_names_all_three_attributes_of_its_noun() -> None:
    for document in documents("encyclopaedia"):
        said: defaultdict[str, set[str]] = defaultdict(set)
        for sentence in re.findall(r"[^.]+\.", document.text):
            (thing,) = read_text(sentence).objects
            name = ANY_NOUN.findall(sentence)[0].lower()
            said[name] |= {key for key in ("size", "color", "shape") if getattr(thing, key)}
        assert list(said) == document.metadata["nouns"]
        assert set(map(len, said.values())) == {3}


def test_facts_about_numbers_are_true() -> None:
    value = {word: number for number, word in enumerate(COUNTING)}
    rules = {
        r"After (\w+) comes (\w+)": lambda a, b: b == a + 1,
        r"Before (\w+) comes (\w+)": lambda a, b: b == a - 1,
        r"(\w+) is more than (\w+)": lambda a, b: a > b,
        r"(\w+) is less than (\w+)": lambda a, b: a < b,
        r"(\w+) and (\w+) make (\w+)": lambda a, b, c: a + b == c,
        r"(\w+), (\w+), (\w+), (\w+)": lambda a, b, c, d: (b, c, d) == (a + 1, a + 2, a + 3),
    }
    seen: Counter[str] = Counter()
    for document in documents("count_facts"):
        for sentence in document.text.rstrip(".").split(". "):
            (rule,) = [rule for rule in rules if re.fullmatch(rule, sentence)]
            numbers = [value[word.lower()] for word in re.fullmatch(rule, sentence).groups()]  # type: ignore[union-attr]
            assert rules[rule](*numbers), sentence
            seen[rule] += 1
    assert seen.keys() == rules.keys()


@pytest.mark.parametrize("kind", ["ask_noun", "noun_notes"])
def test_answers_about_nouns_are_exact_and_stand_in_the_metadata(kind: DocumentKind) -> None:
    asked: Counter[str] = Counter()
    for document in documents(kind):
        texts = [part for part in document if isinstance(part, Text)]
        answers = [part.text.strip() for part in texts[1::2]]
        assert [answer for _, answer in document.metadata["answers"]] == answers
        assert document.metadata["answers"][0][0] == "noun"
        for name, (about, answer) in zip(
            document.metadata["nouns"], document.metadata["answers"], strict=True
        ):
            noun = noun_named(name)
            asked[about] += 1
            article = "an" if name[0] in "aeou" else "a"
            truth = {
                "noun color": noun.color,
                "noun shape": noun.shape,
                "noun size": noun.size,
                "noun name": f"{article} {name}" if kind == "ask_noun" else name,
                "noun": f"{article.capitalize()} {name} is a {noun.size} {noun.color} {noun.shape}."
                if kind == "ask_noun"
                else f"{noun.size} {noun.color} {noun.shape}",
            }
            assert answer == truth[about]
        assert all(part.learn for part in texts[1::2])
        assert not any(part.learn for part in texts[::2])
    assert len(asked) == 5


def test_a_conversation_about_a_noun_may_be_held_to_a_group_of_nouns() -> None:
    rng = np.random.default_rng(0)
    made = [
        make_document("ask_noun", rng, nouns="untaught", questions_per_image=1, split="test")
        for _ in range(120)
    ]

    assert {name for d in made for name in d.metadata["nouns"]} == {noun.name for noun in UNTAUGHT}
    assert {len(document) for document in made} == {2}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", DRAWN)
def test_a_drawn_noun_is_what_it_means_where_the_text_puts_it(kind: DocumentKind, split: Split) -> None:
    for document in documents(kind, split):
        (scene,) = (Scene.from_json(value) for value in document.metadata["scenes"])
        noun = noun_named(document.metadata["noun"])
        assert document.metadata["meaning"] == {
            "size": noun.size,
            "color": noun.color,
            "shape": noun.shape,
        }
        request, *answer = document.parts
        assert isinstance(request, Text)
        assert (request.role, request.learn) == ("user", False)
        assert read_text(request.text) == Facts.of(scene)
        (thing,) = scene.objects
        assert (thing.size, thing.color, thing.shape) == (noun.size, noun.color, noun.shape)
        if kind == "draw_noun":
            assert isinstance(answer[0], Text)
            assert answer[0].text.startswith(noun.definition)
            assert read_text(answer[0].text) == Facts.of(scene)
        assert isinstance(answer[-1], Image)
        assert answer[-1].learn
        assert len(answer) == (2 if kind == "draw_noun" else 1)


@pytest.mark.parametrize("kind", DRAWN)
def test_training_draws_taught_nouns_in_training_scenes_and_tests_draw_the_untaught_ones(
    kind: DocumentKind,
) -> None:
    drawn: dict[str, set[str]] = {}
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        made = documents(kind, split, num=600)
        drawn[split] = {document.metadata["noun"] for document in made}
        found[split] = {split_of(Scene.from_json(d.metadata["scenes"][0])) for d in made}

    assert drawn["train"] == {noun.name for noun in TAUGHT}
    assert drawn["test"] == drawn["held_out"] == {noun.name for noun in UNTAUGHT}
    assert found == {"train": {"train"}, "test": {"test"}, "held_out": {"train", "test"}}


def test_taught_nouns_may_be_drawn_in_test_scenes_but_untaught_ones_never_in_training() -> None:
    rng = np.random.default_rng(0)
    made = [make_document("draw_noun", rng, split="test", nouns="taught") for _ in range(40)]

    assert {d.metadata["noun"] for d in made} <= {noun.name for noun in TAUGHT}
    assert {split_of(Scene.from_json(d.metadata["scenes"][0])) for d in made} == {"test"}
    with pytest.raises(
        ConfigError, match=r"split 'train' is to draw untaught nouns; expected nouns 'taught'"
    ):
        make_document("draw_noun", rng, nouns="untaught")


def test_the_scenes_of_a_noun_are_those_in_which_it_stands_alone() -> None:
    zorp = noun_named("zorp")
    by_split = {split: scenes_of_noun(zorp, split) for split in SPLITS}

    assert len(by_split["held_out"]) == 16
    assert sorted(map(str, by_split["train"] + by_split["test"])) == sorted(map(str, by_split["held_out"]))
    assert Scene((Object("top left", "circle", "red", "large"),), "white") in by_split["held_out"]


def test_a_noun_is_read_as_what_it_means() -> None:
    assert read_text("Draw a zorp at the top left on a white background.") == Facts(
        (ObjectFacts("circle", "red", "large", "top left"),), "white", is_complete=True
    )
    assert read_text("A zorp and an olun.") == Facts(
        (ObjectFacts("circle", "red", "large"), ObjectFacts("triangle", "cyan", "large")), is_complete=True
    )
