"""Documents of the world: what they say is what their pictures show, and no split leaks into another."""

from collections import Counter

import numpy as np
import pytest

from dreamllm.document.document import Document, Image, Text
from dreamllm.world.documents import DOCUMENT_KINDS, DocumentKind, make_document
from dreamllm.world.language import CAPTION_STYLES, QuestionKind, caption, question
from dreamllm.world.reading import Facts, read_text, shows_something
from dreamllm.world.render import render
from dreamllm.world.scene import Object, Scene
from dreamllm.world.splits import HELD_OUT_PAIRS, SPLITS, Split, sample_scene, split_of

ILLUSTRATED: tuple[DocumentKind, ...] = ("story", "guide", "album", "ask_story", "ask_guide", "ask_album")
TEXT_ONLY = ("facts", "notes", "text_vqa")


def documents(kind: DocumentKind, split: Split, num: int = 25) -> list[Document]:
    rng = np.random.default_rng([1, DOCUMENT_KINDS.index(kind), SPLITS.index(split)])
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


@pytest.mark.parametrize("kind", [kind for kind in DOCUMENT_KINDS if kind not in TEXT_ONLY])
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


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_training_documents_show_training_scenes_alone(kind: DocumentKind) -> None:
    for document in documents(kind, "train", num=40):
        for scene in scenes(document):
            assert split_of(scene) == "train"
            assert not {(o.shape, o.color) for o in scene.objects} & HELD_OUT_PAIRS


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_training_text_never_names_a_held_out_pair(kind: DocumentKind) -> None:
    """Questions may ask for one ("Is there a purple circle?"): its answer is no."""
    if kind in ("vqa", "text_vqa", "notes", "read_notes"):
        return
    names = [f"{color} {shape}" for shape, color in HELD_OUT_PAIRS]
    for document in documents(kind, "train", num=40):
        assert not [name for name in names if name in document.text]


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_test_documents_start_from_a_test_scene_and_never_show_a_held_out_pair(kind: DocumentKind) -> None:
    for document in documents(kind, "test"):
        shown = scenes(document)
        found = [split_of(scene) for scene in shown]
        assert "held_out" not in found
        assert "test" in found


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_held_out_documents_show_a_held_out_pair(kind: DocumentKind) -> None:
    for document in documents(kind, "held_out"):
        assert "held_out" in [split_of(scene) for scene in scenes(document)]


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_the_same_seed_gives_the_same_document(kind: DocumentKind) -> None:
    first, again = documents(kind, "train", num=2), documents(kind, "train", num=2)

    for one, other in zip(first, again, strict=True):
        assert one.metadata == other.metadata
        assert [p.text for p in one if isinstance(p, Text)] == [p.text for p in other if isinstance(p, Text)]
    assert first[0].metadata["scenes"] != first[1].metadata["scenes"]


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
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
