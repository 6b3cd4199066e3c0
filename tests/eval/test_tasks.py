"""Tasks: the truth scores full marks, wrong things score none, and a random model runs through all."""

import dataclasses

import numpy as np
import pytest

from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError
from dreamllm.eval.runner import TASKS, TASKS_OF, task_names
from dreamllm.eval.scores import TaskResult
from dreamllm.eval.subject import CELLS, EvalOptions, Subject
from dreamllm.eval.tasks import captions, deciding, drawing, vqa
from dreamllm.eval.tasks.documents import decision_table, judge_document
from dreamllm.eval.written import Decisions
from dreamllm.world.documents import DocumentKind, make_document
from dreamllm.world.judge import Judge
from dreamllm.world.language import CAPTION_STYLES, QUESTION_KINDS, caption
from dreamllm.world.render import render_image
from dreamllm.world.splits import sample_scene

TRUTH: tuple[tuple[str, DocumentKind], ...] = (
    ("story", "ask_story"),
    ("guide", "ask_guide"),
    ("album", "ask_album"),
)


def prompt_of(document: Document) -> Document:
    return dataclasses.replace(document, parts=document.parts[:1])


# ---- the truth, and what is not -----------------------------------------------------------------------


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_a_true_caption_is_all_correct(style: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_scene(rng, "test")
        assert captions.compare(caption(scene, style, rng), scene, style)[:2] == (True, True)  # type: ignore[arg-type]


def test_a_caption_may_not_leave_out_an_object_nor_say_more_than_is_true() -> None:
    scene = sample_scene(np.random.default_rng(0), "test", num_objects=2)
    things = [f"a {thing.color} {thing.shape}" for thing in scene.objects]
    wrong_size = {"small": "large", "large": "small"}[scene.objects[0].size]
    said_more = f"A {wrong_size} {things[0][2:]} and {things[1]}."

    assert captions.compare(f"{things[0].capitalize()} and {things[1]}.", scene, "short")[:2] == (True, True)
    readable, right, found = captions.compare(f"{things[0].capitalize()}.", scene, "short")
    assert (readable, right, found.counts["shape"]) == (True, False, (1, 2))
    assert captions.compare(said_more, scene, "short")[:2] == (True, False)


@pytest.mark.parametrize("words", ["red red circle", "", "The end."])
def test_babble_and_silence_have_nothing_right_and_still_count(words: str) -> None:
    scene = sample_scene(np.random.default_rng(0), "test", num_objects=3)

    readable, right, found = captions.compare(words, scene, "full")

    assert (readable, right) == (False, False)
    assert found.counts["shape"] == (0, 3)
    assert found.counts["background"] == (0, 1)


def test_true_pictures_get_full_marks_and_a_gallery_in_green() -> None:
    options = EvalOptions(num=3)
    items = drawing.make_items(options)
    drawn = drawing.judge_pictures(Judge(), items, [render_image(item.scene) for item in items])
    gallery = {drawing.MODEL: drawn}

    table = drawing.summary_table(items, gallery)

    assert len(table.rows) == 3 * 3 + 1  # three styles of test scenes, and full captions of held-out pairs
    assert {row.scores[0].value for row in table.rows if row.scores[0]} == {1.0}
    rows = drawing.sheet_rows(items, gallery)
    assert [row.label for row in rows[:2]] == ["1 object, truth", "1 object, model"]
    assert all(all(row.verdicts) for row in rows)


def test_pictures_of_another_caption_are_found_out() -> None:
    items = drawing.make_items(EvalOptions(num=10, is_quick=True))
    shifted = [render_image(item.scene) for item in [*items[1:], items[0]]]

    table = drawing.summary_table(items, {drawing.MODEL: drawing.judge_pictures(Judge(), items, shifted)})

    assert {row.scores[0].value for row in table.rows if row.scores[0]} == {0.0}


@pytest.mark.parametrize(("kind", "document_kind"), TRUTH)
def test_a_true_document_is_well_formed_and_its_pictures_are_all_correct(
    kind: str, document_kind: DocumentKind
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        true = make_document(document_kind, rng, split="test")
        judged = judge_document(Judge(), kind, prompt_of(true), true, num_pictures=len(true.images))
        assert judged.is_well_formed
        assert all(picture is not None and picture.all_correct for picture in judged.pictures)


def test_a_document_that_stops_early_is_not_well_formed() -> None:
    true = make_document("ask_album", np.random.default_rng(0), split="test")
    ends_with_picture = dataclasses.replace(true, parts=true.parts[:-1])
    one_picture = dataclasses.replace(true, parts=(*true.parts[:3], Text(text="The end.", role="assistant")))
    nothing = prompt_of(true)

    for document in (ends_with_picture, one_picture, nothing):
        judged = judge_document(Judge(), "album", prompt_of(true), document, num_pictures=len(true.images))
        assert not judged.is_well_formed


def test_a_document_with_its_pictures_swapped_is_well_formed_and_wrong() -> None:
    true = make_document("ask_album", np.random.default_rng(0), split="test")
    swapped = list(true.parts)
    first, second = (i for i, part in enumerate(true.parts) if isinstance(part, Image) and i < 6)
    swapped[first], swapped[second] = swapped[second], swapped[first]

    judged = judge_document(
        Judge(),
        "album",
        prompt_of(true),
        dataclasses.replace(true, parts=tuple(swapped)),
        num_pictures=len(true.images),
    )

    assert judged.is_well_formed
    assert not any(picture is not None and picture.all_correct for picture in judged.pictures[:2])


def test_decisions_become_precision_recall_and_f1() -> None:
    table = decision_table({"all": [Decisions(3, 1, 0), Decisions(3, 1, 4)]}, ("t", "n"))

    found = {row.label: row.scores[0] for row in table.rows}
    assert {label: score and (score.value, score.n) for label, score in found.items()} == {
        "precision": (6 / 8, 8),
        "recall": (6 / 10, 10),
        "F1": (pytest.approx(12 / 18), 12),
    }


def test_the_chance_of_a_kind_is_its_most_frequent_answer() -> None:
    assert vqa.majority_share(["yes", "no", "yes", "yes"]) == 0.75


# ---- a random model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(subject: Subject, options: EvalOptions) -> dict[str, TaskResult]:
    return {name: TASKS[name](subject, options) for name in TASKS_OF[subject.kind]}


def test_every_kind_of_question_is_asked_in_every_cell(results: dict[str, TaskResult]) -> None:
    (table,) = results["vqa"].tables

    assert table.columns == ("1 object", "2 objects", "3 objects")
    for row in table.rows[:-1]:
        expected = [None if row.label == "relation" else 2, 2, 2]
        assert [score and score.n for score in row.scores] == expected
        assert row.chance is not None
    assert [row.label for row in table.rows] == [*QUESTION_KINDS, "all kinds"]


def test_every_cell_of_every_table_lies_inside_its_interval(results: dict[str, TaskResult]) -> None:
    for result in results.values():
        for table in result.tables:
            for row in table.rows:
                for score in row.scores:
                    if score is not None and score.value is not None:
                        assert 0 <= score.low <= score.value <= score.high <= 1, (table.title, row.label)


def test_the_baseline_draws_the_same_captions_and_says_what_it_cuts(results: dict[str, TaskResult]) -> None:
    summary = results["drawing"].tables[0]

    assert summary.columns == ("model", "baseline")
    assert [row.scores[0].n for row in summary.rows if row.scores[0]] == [2, 2, 2]
    (share,) = results["drawing"].details.values()
    assert 0 < share <= 1  # full captions of three objects are longer than 24 tokens
    assert [row.label for row in results["drawing"].sheet[:3]] == [
        "1 object, truth",
        "1 object, model",
        "1 object, baseline",
    ]


def test_generated_documents_are_kept_to_look_at(results: dict[str, TaskResult]) -> None:
    assert len(results["documents"].documents) == 3
    assert {document.parts[0].role for document in results["documents"].documents} == {"user"}


def test_teacher_forced_decisions_count_every_picture_of_the_documents(subject: Subject) -> None:
    result = deciding.run(subject, EvalOptions(num=6))

    rng = np.random.default_rng([0, 5])
    num = sum(len(make_document(kind, rng, split="test").images) for kind in deciding.KINDS for _ in range(2))
    recall = result.tables[0].score("recall", "all")
    assert recall is not None
    assert recall.n == num


def test_a_model_that_always_draws_recalls_everything_and_one_that_never_does_nothing(
    subject: Subject, options: EvalOptions
) -> None:
    head = subject.generator.model.language_model.get_output_embeddings()
    dream_start = subject.generator.tokenizer.special.dream_start
    before = head.bias.data[dream_start].item()
    try:
        head.bias.data[dream_start] = 1e4
        always = deciding.run(subject, options).tables[0]
        head.bias.data[dream_start] = -1e4
        never = deciding.run(subject, options).tables[0]
    finally:
        head.bias.data[dream_start] = before

    assert always.score("recall", "all").value == 1  # type: ignore[union-attr]
    assert 0 < always.score("precision", "all").value < 0.2  # type: ignore[union-attr, operator]
    assert never.score("recall", "all").value == 0  # type: ignore[union-attr]
    assert never.score("precision", "all").value is None  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_scores_and_pictures(
    subject: Subject, options: EvalOptions, results: dict[str, TaskResult]
) -> None:
    again = drawing.run(subject, options)

    assert again.tables == results["drawing"].tables
    for one, other in zip(again.sheet, results["drawing"].sheet, strict=True):
        assert [p.tobytes() for p in one.pictures] == [p.tobytes() for p in other.pictures]


def test_a_suite_is_its_tasks_and_an_unknown_name_is_a_mistake() -> None:
    assert task_names(["world"]) == ["vqa", "captions", "drawing", "documents", "deciding"]
    assert task_names(["drawing", "vqa", "vqa"]) == ["vqa", "drawing"]
    with pytest.raises(ConfigError, match="tasks poetry cannot be run; expected world, vqa, "):
        task_names(["vqa", "poetry"])
    with pytest.raises(ConfigError, match=r"tasks \(none\) cannot be run"):
        task_names([])


def test_only_a_whole_run_asks_for_held_out_pairs() -> None:
    assert EvalOptions().cells == CELLS
    assert [split for _, split, _ in CELLS] == ["test", "test", "test", "held_out"]
    assert {split for _, split, _ in EvalOptions(is_quick=True).cells} == {"test"}


def test_a_cell_needs_an_item() -> None:
    with pytest.raises(ConfigError, match="num is 0; a cell needs at least 1 item; raise it"):
        EvalOptions(num=0)
