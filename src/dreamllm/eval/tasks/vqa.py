"""Questions about pictures: greedy answers against the true ones, by kind and number of objects.

Each question stands alone, first in a conversation about a picture of its own, so that items are independent.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from dreamllm.document.document import Document, Image, Text
from dreamllm.eval.scores import Row, Score, Table, TaskResult, proportion
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.eval.written import answer_of
from dreamllm.world.language import QA, QUESTION_KINDS, QuestionKind, question
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.splits import Split, sample_scene

MAX_ANSWER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Item:
    """A question in a cell of the table."""

    cell: str
    qa: QA
    prompt: Document


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Ask `options.num` questions of every kind in every cell."""
    rng = np.random.default_rng([options.seed, 1])
    items = [
        _item(rng, cell, split, counts, kind)
        for cell, split, counts in options.cells
        for kind in QUESTION_KINDS
        if (kind, counts) != ("relation", (1,))
        for _ in range(options.num)
    ]
    answered = subject.generate(
        [item.prompt for item in items], options, "text", max_new_tokens=MAX_ANSWER_TOKENS
    )
    outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item, document in zip(items, answered, strict=True):
        outcomes[item.qa.kind, item.cell].append(answer_of(item.prompt, document) == item.qa.answer)
    return TaskResult(tables=(_table(items, outcomes),))


def majority_share(answers: list[str]) -> float:
    """What always giving the most frequent answer would score."""
    return max(Counter(answers).values()) / len(answers)


def _item(
    rng: np.random.Generator, cell: str, split: Split, counts: tuple[int, ...], kind: QuestionKind
) -> Item:
    if kind == "relation":
        counts = tuple(n for n in counts if n > 1)
    while True:
        scene = sample_scene(rng, split, num_objects=counts)
        qa = question(scene, kind, rng)
        if qa is not None:
            return Item(cell, qa, prompt(scene, qa.question))


def prompt(scene: Scene, words: str) -> Document:
    """A user shows a picture and says something."""
    return Document(
        parts=(
            Image(source=render_image(scene), role="user", learn=False),
            Text(text=words, role="user", learn=False),
        )
    )


def _table(items: list[Item], outcomes: dict[tuple[str, str], list[bool]]) -> Table:
    cells = list(dict.fromkeys(item.cell for item in items))
    rows = []
    for kind in QUESTION_KINDS:
        scores: list[Score | None] = [
            proportion(outcomes[kind, cell]) if (kind, cell) in outcomes else None for cell in cells
        ]
        answers = [item.qa.answer for item in items if item.qa.kind == kind]
        rows.append(Row(label=kind, scores=tuple(scores), chance=majority_share(answers)))
    together = [
        proportion([right for (_, name), results in outcomes.items() if name == cell for right in results])
        for cell in cells
    ]
    rows.append(Row(label="all kinds", scores=tuple(together)))
    return Table(
        title="Questions about pictures",
        columns=tuple(cells),
        rows=tuple(rows),
        note="Exact match of the greedy answer. Chance is the most frequent true answer of the kind.",
    )
