"""Questions about pictures with short answers, as conversations: VQAv2, OK-VQA, TextVQA, GQA.

    questions of their own    {"questions": [{question_id, image_id, question}]}, with a second file
    (VQAv2, OK-VQA)           {"annotations": [{question_id, multiple_choice_answer | answers: [{answer}]}]}
    data (TextVQA)            {"data": [{question_id, image_id, question, answers: [..]}]}
    by id (GQA)               {ID: {imageId, question, answer}}

The answer is the one given most often, of equally frequent ones the first.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dreamllm.data.formats.named_pictures import NamedPictures
from dreamllm.data.formats.records import Record, RecordArchive, Records, required, scan_json
from dreamllm.data.formats.tar_pictures import TarPictures
from dreamllm.data.index import INDEX_FOLDER, FileScan, index_files
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError

SHORT_ANSWER_PROMPT = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 appends to such questions (arXiv:2310.03744)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaOptions:
    """How questions are read."""

    images: Path
    """Folder of the pictures."""
    image_name: str = "{image_id}.jpg"
    """A picture's path in the folder, with keys of the question: VQAv2 wants
    `COCO_train2014_{image_id:012d}.jpg`, GQA `{imageId}.jpg`."""
    layout: Literal["annotated", "data", "by_id"] = "annotated"
    """annotated: VQAv2 and OK-VQA; data: TextVQA; by_id: GQA."""
    annotations: Path | None = None
    """The file of answers; of layout `annotated` alone."""
    prompt: str = SHORT_ANSWER_PROMPT
    """Follows each question on a line of its own; empty: nothing does."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""

    def __post_init__(self) -> None:
        if (self.layout == "annotated") != (self.annotations is not None):
            raise ConfigError(
                f"layout is {self.layout!r} with annotations {self.annotations}; expected a file of "
                "annotations for layout annotated, and none for the others; correct either"
            )


def open_vqa(path: Path, options: VqaOptions) -> RecordArchive:
    """One conversation a question."""
    key = {"annotated": "questions", "data": "data", "by_id": "*"}[options.layout]
    records = Records(path, index_folder=options.index_folder, key=key)
    answers = None
    if options.annotations is not None:
        folder = (
            options.annotations.parent / INDEX_FOLDER
            if options.index_folder is None
            else options.index_folder
        )
        answers = AnswersById(options.annotations, folder)
    tars = TarPictures(index_folder=options.index_folder)
    pictures = NamedPictures(folder=options.images, name=options.image_name, tars=tars)
    return RecordArchive(records, ReadQuestion(options, answers, pictures))


class AnswersById:
    """Annotations by `question_id`, found by bisection; none is held in memory."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._index = index_files((path,), _scan_annotations, reader="annotations", folder=folder)

    def find(self, question_id: int, *, where: str) -> Any:
        """The annotation of a question.

        Raises:
            FaultError: there is none.
        """
        table: Int64[np.ndarray, "n 3"] = self._index.table(0)
        row = int(np.searchsorted(table[:, 0], question_id))
        if row == len(table) or table[row, 0] != question_id:
            raise FaultError(
                "missing_text",
                f"{where}: {self._path} has no answer to question {question_id}; expected one; leave it out",
            )
        _, offset, size = map(int, table[row])
        with self._path.open("rb") as file:
            file.seek(offset)
            return Record(data=file.read(size), file=self._path, number=row, where=where).json()


@dataclass(frozen=True, slots=True)
class ReadQuestion:
    """A record with a question."""

    options: VqaOptions
    answers: AnswersById | None
    pictures: NamedPictures

    def __call__(self, record: Record, index: int) -> Document:
        """A conversation of one question and its answer."""
        value, where, options = record.json(), record.where, self.options
        question = required(value, "question", str, where=where).strip()
        if self.answers is not None:
            question_id = required(value, "question_id", int, where=where)
            answer = _answer(self.answers.find(question_id, where=where), where)
        else:
            answer = _answer(value, where)
        picture = self.pictures.find(value, where=where)
        asked = f"{question}\n{options.prompt}" if options.prompt else question
        return Document(
            parts=(
                Image(source=picture, role="user", learn=False),
                Text(text=asked, role="user", learn=False),
                Text(text=answer, role="assistant"),
            ),
            id=str(value.get("question_id", f"{record.file.stem}-{record.number}")),
        )


def _answer(value: Any, where: str) -> str:
    given = value.get("multiple_choice_answer", value.get("answer"))
    if given is None:
        answers = required(value, "answers", list, where=where)
        texts = [each.get("answer") if isinstance(each, dict) else each for each in answers]
        common = Counter(text for text in texts if isinstance(text, str) and text.strip()).most_common(1)
        given = common[0][0] if common else ""
    if not isinstance(given, str) or not given.strip():
        raise FaultError("missing_text", f"{where} has no answer; expected one; leave the question out")
    return given.strip()


def _scan_annotations(path: Path) -> FileScan:
    """Question, first byte and number of bytes of every annotation, by rising question."""
    rows = scan_json(path, "annotations").rows
    found: list[tuple[int, int, int]] = []
    with path.open("rb") as file:
        for offset, size, _ in np.zeros((0, 3), np.int64) if rows is None else rows:
            file.seek(int(offset))
            try:
                question = json.loads(file.read(int(size)))["question_id"]
            except (ValueError, KeyError, TypeError):
                continue  # its question then has no answer, which is a fault of that question
            found.append((int(question), int(offset), int(size)))
    table = np.asarray(sorted(found), dtype=np.int64).reshape(-1, 3)
    return FileScan(groups=(len(table),), rows=table)
