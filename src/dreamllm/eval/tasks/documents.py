"""Illustrated documents on request: what the model writes decides what its pictures must show.

Only the request is given. Each picture is judged against the facts its own document asserts up to it, so a
story that leaves the request is held to its own word. Each decision to draw is judged by the world's rule of
when to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreamllm.document.document import Document, Text
from dreamllm.eval.intervals import f1, precision, recall
from dreamllm.eval.scores import (
    Row,
    Score,
    Table,
    TaskResult,
    attribute_rows,
    clustered,
    proportion,
    share_of_counts,
)
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.eval.written import Decisions, claims, decisions, is_readable, written
from dreamllm.world.agreement import Agreement, agreement
from dreamllm.world.documents import DocumentKind, make_document
from dreamllm.world.judge import Judge

KINDS: dict[str, DocumentKind] = {"story": "ask_story", "guide": "ask_guide", "album": "ask_album"}
KINDS_OF_JAM: dict[str, DocumentKind] = {"how-to": "ask_howto", **KINDS}
"""JAM (arXiv:2309.15564) is tuned on how-to documents."""
MAX_TOKENS = 240
MAX_IMAGES = 4
"""One more than any document of the world has, so that drawing too much shows."""
PICTURES = ("picture 1", "picture 2", "picture 3")
NUM_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one generated document."""

    kind: str
    pictures: tuple[Agreement | None, ...]
    """Of each picture with the facts before it; None where the text cannot be read."""
    decisions: Decisions
    is_readable: bool
    has_right_number: bool
    """Whether it has as many pictures as the request implies."""
    ends_with_words: bool

    @property
    def is_well_formed(self) -> bool:
        """Readable, as many pictures as asked, each in its place, and an ending."""
        in_place = self.decisions.false == self.decisions.missed == 0
        return self.is_readable and self.has_right_number and in_place and self.ends_with_words


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Write `options.num` documents, equally many of each kind."""
    kinds = KINDS if subject.kind == "DreamLLM" else KINDS_OF_JAM
    rng = np.random.default_rng([options.seed, 4])
    asked = [
        (kind, make_document(document_kind, rng, split="test", id=f"{kind} {index}"))
        for index in range(max(1, options.num // len(kinds)))
        for kind, document_kind in kinds.items()
    ]
    prompts = [replace(document, parts=document.parts[:1], metadata={}) for _, document in asked]
    documents = subject.generate(
        prompts, options, "interleaved", max_new_tokens=MAX_TOKENS, max_images=MAX_IMAGES
    )
    judged = [
        judge_document(subject.judge, kind, prompt, document, num_pictures=len(true.images))
        for (kind, true), prompt, document in zip(asked, prompts, documents, strict=True)
    ]
    tables = (_picture_table(judged), _document_table(judged), decision_table(_decision_cells(judged), FREE))
    return TaskResult(tables=tables, documents=tuple(documents[:NUM_SHOWN]))


def judge_document(
    judge: Judge, kind: str, prompt: Document, document: Document, *, num_pictures: int
) -> Judged:
    """Read the generated part of a document and its pictures."""
    parts = written(prompt, document)
    made = claims(parts)
    readings = judge.read_many([claim.picture for claim in made])
    return Judged(
        kind=kind,
        pictures=tuple(
            None if claim.facts is None else agreement(claim.facts, reading)
            for claim, reading in zip(made, readings, strict=True)
        ),
        decisions=decisions(parts),
        is_readable=is_readable(parts),
        has_right_number=len(made) == num_pictures,
        ends_with_words=bool(parts) and isinstance(parts[-1], Text),
    )


def _picture_table(judged: Sequence[Judged]) -> Table:
    """By the number of the picture in its document, and all together."""
    columns = [[j.pictures[n : n + 1] for j in judged if len(j.pictures) > n] for n in range(len(PICTURES))]
    columns.append([j.pictures for j in judged if j.pictures])
    whole = [
        _share(column, lambda picture: picture is not None and picture.all_correct) for column in columns
    ]
    readable = [_share(column, lambda picture: picture is not None) for column in columns]
    known = [[[p for p in pictures if p is not None] for pictures in column] for column in columns]
    return Table(
        title="Illustrated documents, pictures against their own text",
        columns=(*PICTURES, "all"),
        rows=(
            Row(label="all correct", scores=tuple(whole)),
            Row(label="readable text", scores=tuple(readable)),
            *attribute_rows(known),
        ),
        note="All correct: everything the text before it asserts is in the picture; after text outside the "
        "grammar no picture is. Attributes: of pictures after readable text. Intervals are over documents.",
    )


def _share(
    documents: Sequence[Sequence[Agreement | None]], holds: Callable[[Agreement | None], bool]
) -> Score:
    return share_of_counts([(sum(map(holds, pictures)), len(pictures)) for pictures in documents])


def _document_table(judged: Sequence[Judged]) -> Table:
    claims_about: dict[str, Callable[[Judged], bool]] = {
        "well-formed": lambda j: j.is_well_formed,
        "readable": lambda j: j.is_readable,
        "as many pictures as asked": lambda j: j.has_right_number,
        "well-formed, all pictures correct": lambda j: (
            j.is_well_formed and all(p is not None and p.all_correct for p in j.pictures)
        ),
    }
    groups = _by_kind(judged)
    return Table(
        title="Illustrated documents, form",
        columns=tuple(groups),
        rows=tuple(
            Row(label=label, scores=tuple(proportion([holds(j) for j in group]) for group in groups.values()))
            for label, holds in claims_about.items()
        ),
        note="Well-formed: in the grammar, as many pictures as asked, each in its place, words at the end.",
    )


def _by_kind(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        groups.setdefault(each.kind, []).append(each)
    return groups | {"all": list(judged)}


def _decision_cells(judged: Sequence[Judged]) -> dict[str, list[Decisions]]:
    return {kind: [j.decisions for j in group] for kind, group in _by_kind(judged).items()}


FREE = (
    "When to draw, writing freely",
    "A picture belongs exactly after each sentence that shows something new. Intervals are over documents.",
)


def decision_table(cells: dict[str, list[Decisions]], title_and_note: tuple[str, str]) -> Table:
    """Precision, recall and F1 of decisions to draw; n counts claims, true decisions, and both."""
    title, note = title_and_note
    rows = []
    for name, statistic in (("precision", precision), ("recall", recall), ("F1", f1)):
        scores = []
        for found in cells.values():
            n = sum(
                d.hits + (d.false if name != "recall" else 0) + (d.missed if name != "precision" else 0)
                for d in found
            )
            scores.append(clustered([d.counts for d in found], statistic, n=n))
        rows.append(Row(label=name, scores=tuple(scores)))
    return Table(title=title, columns=tuple(cells), rows=tuple(rows), note=note)
