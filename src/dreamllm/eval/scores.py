"""Scores with their intervals, in tables: what every task returns and every report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dreamllm.document.document import Document
from dreamllm.eval.intervals import Statistic, bootstrap, share, wilson
from dreamllm.world.agreement import ATTRIBUTES, Agreement
from dreamllm.world.sheet import SheetRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score with its 95 % interval; None where there was nothing to score. In [0, 1], but for tables of
    numbers."""

    value: float | None
    low: float
    high: float
    n: int
    """Items behind it: questions, captions, assertions, decisions."""

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def proportion(outcomes: Sequence[bool]) -> Score:
    """The share of independent items that are right."""
    right, num = sum(outcomes), len(outcomes)
    low, high = wilson(right, num)
    return Score(value=right / num if num else None, low=low, high=high, n=num)


def share_of_counts(counts: Sequence[tuple[int, int]]) -> Score:
    """The share of (right, asserted) summed over documents, whose assertions hang together."""
    return clustered(counts, share, n=sum(asserted for _, asserted in counts))


def clustered(counts: Sequence[tuple[int, ...]], statistic: Statistic, *, n: int) -> Score:
    """A score of counts summed over documents, with an interval over documents."""
    if not counts:
        return Score(value=None, low=0.0, high=1.0, n=n)
    table = np.asarray(counts)
    value = float(statistic(table.sum(axis=0, keepdims=True).astype(float))[0])
    if np.isnan(value):
        return Score(value=None, low=0.0, high=1.0, n=n)
    low, high = bootstrap(table, statistic)
    return Score(value=value, low=low, high=high, n=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table."""

    label: str
    scores: tuple[Score | None, ...]
    """One a column; None where the column does not apply."""
    chance: float | None = None
    """What a guess that never looks would score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Scores of one kind side by side."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    """What a reader must know to read the numbers."""
    unit: Literal["share", "number"] = "share"
    """Shares are shown in percent, numbers as they are."""

    def score(self, row: str, column: str) -> Score | None:
        """The score at a place of the table."""
        (line,) = [each for each in self.rows if each.label == row]
        return line.scores[self.columns.index(column)]

    def to_json(self) -> dict[str, Any]:
        """A JSON value: rows by label, scores by column."""
        rows = {
            row.label: {
                column: score.to_json()
                for column, score in zip(self.columns, row.scores, strict=True)
                if score is not None
            }
            | ({} if row.chance is None else {"chance": row.chance})
            for row in self.rows
        }
        return {"title": self.title, "note": self.note, "unit": self.unit, "rows": rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a task found."""

    tables: tuple[Table, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON values, such as the share of captions that were cut."""
    sheet: tuple[SheetRow, ...] = ()
    """Pictures to look at."""
    documents: tuple[Document, ...] = ()
    """Documents to look at."""


def attribute_rows(columns: Sequence[Sequence[Sequence[Agreement]]]) -> list[Row]:
    """A row an attribute; a column holds documents, a document the agreements of its pictures."""
    rows = []
    for name in ATTRIBUTES:
        scores = [
            share_of_counts([_summed([a.counts[name] for a in document]) for document in documents])
            for documents in columns
        ]
        if any(score.n for score in scores):
            rows.append(Row(label=name, scores=tuple(score if score.n else None for score in scores)))
    return rows


def _summed(counts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(right for right, _ in counts), sum(asserted for _, asserted in counts)
