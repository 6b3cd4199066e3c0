"""Exact answers: is the most likely continuation of a conversation, token by token, the true answer?

Teacher-forced on the conversation with the true answers, which for an exact match of a whole answer is the
same as greedy decoding of that answer after the true ones before it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.document.document import Document
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.document_encoder import DocumentEncoder
from dreamllm.sequence.packing import collate

BATCH_SIZE = 16
Predict = Callable[[Batch], Int[Tensor, " L"]]
"""The most likely token at every supervised position of a batch."""


def exact_answers(
    documents: Sequence[Document], encoder: DocumentEncoder, predict: Predict
) -> Mapping[str, list[bool]]:
    """Whether each answer of each conversation is exactly right, by question kind.

    A document names the kinds of its answers in `metadata["answers"]`, in order.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(documents), BATCH_SIZE):
        chunk = documents[start : start + BATCH_SIZE]
        batch = collate([[encoder.encode(document)[0]] for document in chunk], encoder.tokenizer.pad_id)
        correct = predict(batch) == batch.labels
        spans = _answer_spans(batch, encoder.tokenizer.eos_id)
        kinds = [kind for document in chunk for kind, _ in document.metadata["answers"]]
        for kind, (first, last) in zip(kinds, spans, strict=True):
            right[kind].append(bool(correct[first:last].all()))
    return right


def _answer_spans(batch: Batch, eos_id: int) -> list[tuple[int, int]]:
    """Label ranges of the answers; each ends with its EOS."""
    ends = (torch.nonzero(batch.labels == eos_id).flatten() + 1).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def argmax_at_labels(
    hidden: Float[Tensor, "B T D"], batch: Batch, head: Callable[[Tensor], Tensor]
) -> Int[Tensor, " L"]:
    """The most likely token at every supervised position."""
    return head(hidden.flatten(0, 1).index_select(0, batch.label_positions)).argmax(-1).cpu()
