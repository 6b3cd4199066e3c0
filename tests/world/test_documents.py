"""Documents of the world: what they say is what their pictures show, and no split leaks into another."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from dreamllm.document.document import Document, Image, Text
from dreamllm.world.documents import ALL_DOCUMENT_KINDS, DOCUMENT_KINDS, DocumentKind, make_document
from dreamllm.world.guides import HOWTO_ENDINGS, HOWTO_REQUESTS
from dreamllm.world.language import CAPTION_STYLES, QuestionKind, caption, question
from dreamllm.world.reading import Facts, read_text, shows_something
from dreamllm.world.render import render
from dreamllm.world.scene import Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, SPLITS, Split, sample_scene, split_of

ILLUSTRATED: tuple[DocumentKind, ...] = (
    "story",
    "guide",
    "album",
    "ask_story",
    "ask_guide",
    "ask_album",
    "ask_howto",
)
WITH_SCENES: tuple[DocumentKind, ...] = (*DOCUMENT_KINDS, "ask_howto")
TEXT_ONLY = ("facts", "notes", "text_vqa")


def documents(kind: DocumentKind, split: Split, num: int = 25) -> list[Document]:
    rng = np.random.default_rng([1, ALL_DOCUMENT_KINDS.index(kind), SPLITS.index(split)])
    return [make_document(kind, rng, split=split) for _ in range(num)]


def scenes(document: Document) -> list[Scene]:
    return [Scene.from_json(value) for value in document.metadata["scenes"]]


def told(document: Document) -> list[Text | Image]:
    """The parts without the request of a user."""
    return [part for part in document if part.role != "user"]


def same(facts: Facts, scene: Scene) -> bool:
    """Equal facts, whatever the order of objects."""
    true = Facts.of(scene)
    return (set(facts.objects), facts.background, facts.is_complete, len(facts.objects)) == (
        set(true.objects),
        true.background,
        True,
        len(true.objects),
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_every_caption_is_read_back_as_its_scene(split: Split, style: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_scene(rng, split)
        facts = read_text(caption(scene, style, rng))  # type: ignore[arg-type]
        if style == "short":
            assert Counter((o.shape, o.color) for o in facts.objects) == Counter(
                (o.shape, o.color) for o in scene.objects
            )
        else:
            assert same(facts, scene)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ILLUSTRATED)
def test_the_text_up_to_a_picture_asserts_exactly_what_it_shows(kind: DocumentKind, split: Split) -> None:
    for document in documents(kind, split):
        facts = Facts()
        truth = iter(scenes(document))
        for part in told(document):
            if isinstance(part, Text):
                facts = read_text(part.text, facts)
            else:
                assert same(facts, next(truth)), document.text
        assert next(truth, None) is None


@pytest.mark.parametrize("kind", [kind for kind in WITH_SCENES if kind not in TEXT_ONLY])
def test_the_pictures_are_renders_of_the_scenes_in_the_metadata(kind: DocumentKind) -> None:
    for document in documents(kind, "test", num=5):
        pictures = [np.asarray(image.load()) for image in document.images]
        assert [p.tolist() for p in pictures] == [render(scene).tolist() for scene in scenes(document)]


@pytest.mark.parametrize("kind", ILLUSTRATED)
def test_a_picture_stands_after_each_sentence_that_shows_something_and_nowhere_else(
    kind: DocumentKind,
) -> None:
    for document in documents(kind, "train"):
        parts = told(document)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            if isinstance(part, Text):
                shows = [shows_something(sentence) for sentence in part.text.split(".") if sentence]
                assert not any(shows[:-1])
                assert shows[-1] == isinstance(following, Image), part.text


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_training_documents_show_training_scenes_alone(kind: DocumentKind) -> None:
    for document in documents(kind, "train", num=40):
        for scene in scenes(document):
            assert split_of(scene) == "train"
            assert not {(o.shape, o.color) for o in scene.objects} & HELD_OUT_PAIRS


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_training_text_never_names_a_held_out_pair(kind: DocumentKind) -> None:
    """Questions may ask for one ("Is there a purple circle?"): its answer is no."""
    if kind in ("vqa", "text_vqa", "notes", "read_notes"):
        return
    names = [f"{color} {shape}" for shape, color in HELD_OUT_PAIRS]
    for document in documents(kind, "train", num=40):
        assert not [name for name in names if name in document.text]


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_test_documents_start_from_a_test_scene_and_never_show_a_held_out_pair(kind: DocumentKind) -> None:
    for document in documents(kind, "test"):
        shown = scenes(document)
        found = [split_of(scene) for scene in shown]
        assert "held_out" not in found
        assert "test" in found


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_held_out_documents_show_a_held_out_pair(kind: DocumentKind) -> None:
    for document in documents(kind, "held_out"):
        assert "held_out" in [split_of(scene) for scene in scenes(document)]


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_the_same_seed_gives_the_same_document(kind: DocumentKind) -> None:
    first, again = documents(kind, "train", num=2), documents(kind, "train", num=2)

    for one, other in zip(first, again, strict=True):
        assert one.metadata == other.metadata
        assert [p.text for p in one if isinstance(p, Text)] == [p.text for p in other if isinstance(p, Text)]
    assert first[0].metadata["scenes"] != first[1].metadata["scenes"]


@pytest.mark.parametrize("kind", WITH_SCENES)
def test_what_a_user_says_or_shows_is_never_learned(kind: DocumentKind) -> None:
    for document in documents(kind, "train", num=3):
        assert not [part for part in document if part.role == "user" and part.learn]


def test_a_read_pair_learns_its_caption_and_a_draw_pair_its_picture() -> None:
    read, draw = (documents(kind, "train", num=1)[0] for kind in ("read_pair", "draw_pair"))

    assert [(type(part), part.learn) for part in read] == [(Image, False), (Text, True)]
    assert [(type(part), part.learn) for part in draw] == [(Text, False), (Image, True)]


@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_a_guide_draws_one_object_more_a_step(num_objects: int) -> None:
    rng = np.random.default_rng(0)
    document = make_document("guide", rng, num_objects=(num_objects,))

    assert [len(scene.objects) for scene in scenes(document)] == list(range(1, num_objects + 1))


def test_stories_sometimes_stand_still() -> None:
    """Two in five stories have the sentence that no picture follows: 0.4 +- 3 standard deviations of 300."""
    rng = np.random.default_rng(0)
    stories = [make_document("story", rng).text for _ in range(300)]

    assert 0.31 < sum("Nothing changes for a while." in story for story in stories) / 300 < 0.49


@pytest.mark.parametrize("kind", ["notes", "read_notes"])
def test_notes_learn_answers_alone_each_right_after_what_it_is_about(kind: DocumentKind) -> None:
    document = make_document(kind, np.random.default_rng(3), questions_per_image=5)

    assert [image.learn for image in document.images] == [False] * (kind == "read_notes")
    texts = [part for part in document if isinstance(part, Text)]
    given, learned = texts[::2], texts[1::2]
    assert [part.text.strip() for part in learned] == [answer for _, answer in document.metadata["answers"]]
    assert all(part.learn for part in learned)
    assert not any(part.learn for part in given)
    assert len(document.metadata["answers"]) == 5


@pytest.mark.parametrize(
    ("kind", "note", "answer"),
    [
        ("background", "color background", "white"),
        ("place", "place red circle", "top left"),
        ("relation", "red circle left of blue star", "yes"),
    ],
)
def test_a_note_says_what_is_asked_and_what_of_last(kind: QuestionKind, note: str, answer: str) -> None:
    scene = Scene(
        (Object("top left", "circle", "red", "small"), Object("top right", "star", "blue", "large")), "white"
    )
    rng = np.random.default_rng(0)

    asked = [qa for _ in range(40) if (qa := question(scene, kind, rng)) is not None]

    assert (note, answer) in {(qa.note, qa.answer) for qa in asked}


def test_guides_on_request_come_in_every_wording_with_one_to_three_pictures() -> None:
    made = documents("ask_howto", "train", num=150)
    requests = [document.parts[0].text for document in made]  # type: ignore[union-attr]
    endings = [document.parts[-1].text for document in made]  # type: ignore[union-attr]
    steps = {
        wording
        for document in made
        for part in document.parts[1:-1]
        if isinstance(part, Text)
        for wording in ("draw", "on it", "then draw", ": add", ": now draw", "beside the rest")
        if wording in part.text
    }

    openings = {opening.split(" {")[0] for opening in HOWTO_REQUESTS}
    assert {next(o for o in openings if request.startswith(o)) for request in requests} == openings
    assert set(endings) == set(HOWTO_ENDINGS)
    assert len({document.parts[1].text.split("Step")[0].split()[0] for document in made}) == 5  # type: ignore[union-attr]
    assert {len(document.images) for document in made} == {1, 2, 3}
    assert len(steps) == 6


@pytest.mark.parametrize("split", SPLITS)
def test_the_request_for_a_guide_describes_its_last_picture(split: Split) -> None:
    openings = [opening.split("{")[0] for opening in HOWTO_REQUESTS]
    for document in documents("ask_howto", split):
        request = document.parts[0]
        assert isinstance(request, Text)
        opening = next(o for o in openings if request.text.startswith(o))
        assert same(read_text(request.text.removeprefix(opening)), scenes(document)[-1])


# Recorded before the documents of JAM came to the world: models that were trained on these kinds, and their
# tokenizers, rest on them. Pictures are functions of the scenes in the metadata.
DIGESTS: dict[DocumentKind, str] = {
    "read_pair": "36198f5020c6c8f5",
    "draw_pair": "726e355ae40130ca",
    "story": "9c3744e7412098df",
    "guide": "a2ac8f01acef6fff",
    "album": "571dc9fcfa0ee9de",
    "facts": "5342d3c181672bb9",
    "notes": "dbe505e892f201c1",
    "read_notes": "8f78e7847321124c",
    "vqa": "8f446382b2d1d90a",
    "describe": "9cca13f46f6ece4b",
    "draw": "175a7b42bd70b9e1",
    "text_vqa": "d5e5fb975338f9c7",
    "ask_story": "889f104e95fdba50",
    "ask_guide": "5680485964ba41d9",
    "ask_album": "b1ceef96b248868f",
    "edit": "26d1c915b74d79c7",
}


def test_captions_have_the_styles_that_are_asked_for() -> None:
    rng = np.random.default_rng(0)

    styles = [
        make_document("draw_pair", rng, caption_styles=("full", "short")).metadata["style"] for _ in range(60)
    ]

    assert set(styles) == {"full", "short"}
    assert 15 < styles.count("short") < 45


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_the_documents_of_dreamllm_stay_what_they_are(kind: DocumentKind) -> None:
    digest = hashlib.sha256()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([11, number])
        for _ in range(8):
            document = make_document(kind, rng, split=split, id="x")
            digest.update(json.dumps([document.id, document.metadata]).encode())
            for part in document:
                digest.update(f"{part.role} {part.learn} ".encode())
                digest.update(part.text.encode() if isinstance(part, Text) else b"picture")
        digest.update(str(rng.integers(2**32)).encode())

    assert digest.hexdigest()[:16] == DIGESTS[kind]


def test_the_kinds_that_dreamllm_learns_its_words_from_stay_the_same_16() -> None:
    assert tuple(DIGESTS) == DOCUMENT_KINDS
    assert ALL_DOCUMENT_KINDS[16:] == (
        "encyclopaedia",
        "noun_notes",
        "count_facts",
        "ask_noun",
        "draw_noun",
        "draw_noun_directly",
        "ask_howto",
    )
