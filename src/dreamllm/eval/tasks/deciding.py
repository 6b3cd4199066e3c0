"""When to draw, teacher-forced: does the likeliest token open a picture exactly where the document has one?

Every supervised position of plain documents of the test split is a decision: words, ends and pictures.
"""

import numpy as np
import torch

from dreamllm.document.document import Document
from dreamllm.eval.scores import TaskResult
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.eval.tasks.documents import decision_table
from dreamllm.eval.written import Decisions
from dreamllm.generate.answers import BATCH_SIZE, argmax_at_labels
from dreamllm.sequence.packing import collate
from dreamllm.world.documents import DocumentKind, make_document

KINDS: tuple[DocumentKind, ...] = ("story", "guide", "album")
TITLE = "When to draw, given the true document so far"
NOTE = (
    "Every position of plain test documents but within pictures: is the token that opens a picture the "
    "likeliest exactly where it stands? Intervals are over documents."
)


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Read `options.num` documents, a third of each kind."""
    rng = np.random.default_rng([options.seed, 5])
    cells: dict[str, list[Decisions]] = {}
    for kind in KINDS:
        documents = [make_document(kind, rng, split="test") for _ in range(max(1, options.num // len(KINDS)))]
        cells[kind] = [
            found
            for start in range(0, len(documents), BATCH_SIZE)
            for found in _decisions(subject, documents[start : start + BATCH_SIZE])
        ]
    cells["all"] = [found for kind in KINDS for found in cells[kind]]
    return TaskResult(tables=(decision_table(cells, (TITLE, NOTE)),))


@torch.no_grad()
def _decisions(subject: Subject, documents: list[Document]) -> list[Decisions]:
    model, encoder = subject.generator.model, subject.generator.encoder
    sequences = [encoder.encode(document)[0] for document in documents]
    batch = collate([[sequence] for sequence in sequences], encoder.tokenizer.pad_id).to(model.device)
    predicted = argmax_at_labels(model.hidden_states(batch), batch, model.logits)
    before = batch.input_ids.flatten()[batch.label_positions].cpu().numpy()
    # What follows a picture code is the next one, or closes the picture: nothing is decided there.
    decides = torch.from_numpy(~subject.is_code(before))
    draws = (predicted == subject.opens_picture) & decides
    should = (batch.labels.cpu() == subject.opens_picture) & decides
    rows = batch.label_positions.cpu() // batch.input_ids.shape[1]  # one document a row
    return [
        Decisions(
            hits=int((draws & should & (rows == row)).sum()),
            false=int((draws & ~should & (rows == row)).sum()),
            missed=int((~draws & should & (rows == row)).sum()),
        )
        for row in range(len(documents))
    ]
