"""Scores and tables."""

import json

import pytest

from dreamllm.eval.intervals import precision, wilson
from dreamllm.eval.scores import Row, Score, Table, attribute_rows, clustered, proportion, share_of_counts
from dreamllm.world.agreement import agreement
from dreamllm.world.reading import Facts, read_text


def test_a_proportion_counts_what_is_right() -> None:
    score = proportion([True, True, False, True])

    assert (score.value, score.n) == (0.75, 4)
    assert (score.low, score.high) == wilson(3, 4)


def test_nothing_to_score_has_no_value() -> None:
    assert proportion([]) == Score(value=None, low=0.0, high=1.0, n=0)
    assert share_of_counts([(0, 0), (0, 0)]).value is None
    assert clustered([], precision, n=0).value is None


def test_counts_are_summed_before_they_are_divided() -> None:
    """1 of 1 and 1 of 3 are 2 of 4, not the mean of 1 and a third."""
    score = share_of_counts([(1, 1), (1, 3)])

    assert (score.value, score.n) == (0.5, 4)


def test_attribute_rows_leave_out_what_no_column_asserts() -> None:
    said = read_text("A red circle and a blue square.")
    half = read_text("A red circle and a green star.")

    rows = attribute_rows([[[agreement(said, half)], [agreement(said, said)]], [[agreement(said, Facts())]]])

    assert [row.label for row in rows] == ["shape", "color", "binding", "count"]
    values = {row.label: [score and (score.value, score.n) for score in row.scores] for row in rows}
    assert values["shape"] == [(0.75, 4), (0.0, 2)]
    assert values["count"] == [(1.0, 2), (0.0, 1)]


def test_a_table_is_json_and_gives_its_scores_by_name() -> None:
    score = proportion([True, False])
    table = Table(
        title="t",
        columns=("a", "b"),
        rows=(Row(label="x", scores=(score, None), chance=0.25), Row(label="y", scores=(None, score))),
        note="n",
    )

    assert table.score("x", "a") == score
    assert table.score("x", "b") is None
    value = json.loads(json.dumps(table.to_json()))
    assert value["rows"]["x"] == {"a": pytest.approx(score.to_json()), "chance": 0.25}
    assert set(value["rows"]["y"]) == {"b"}
