"""Exact answers with predictors made by hand: the labels themselves, with chosen errors."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Document, Text
from dreamllm.generate.answers import BATCH_SIZE, argmax_at_labels, exact_answers
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.packing import collate
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.world.documents import make_document


@pytest.fixture(scope="module")
def reader(tokenizer: Tokenizer) -> SequenceEncoder:
    return SequenceEncoder(
        tokenizer,
        SlotSizes(num_visual_tokens=1, num_dream_queries=1),
        PLAIN_CHAT,
        VisionTransform(4),
        TargetTransform(8),
        EncodeOptions(max_length=2000),
    )


def conversation(*answers: str) -> Document:
    parts: list[Text] = []
    for index, answer in enumerate(answers):
        parts += [
            Text(text=f"Question {index}?", role="user", learn=False),
            Text(text=answer, role="assistant"),
        ]
    return Document(
        parts=tuple(parts), metadata={"answers": [[f"kind{i}", a] for i, a in enumerate(answers)]}
    )


def test_true_labels_answer_everything_and_every_kind_is_counted(reader: SequenceEncoder) -> None:
    rng = np.random.default_rng(0)
    documents = [make_document("text_vqa", rng, questions_per_image=3) for _ in range(BATCH_SIZE + 2)]

    right = exact_answers(documents, reader, lambda batch: batch.labels)

    asked = Counter(kind for document in documents for kind, _ in document.metadata["answers"])
    assert {kind: len(answers) for kind, answers in right.items()} == asked
    assert all(all(answers) for answers in right.values())


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, {"kind0": [False], "kind1": [True], "kind2": [True]}),
        (4, {"kind0": [False], "kind1": [True], "kind2": [True]}),  # the EOS that ends the first answer
        (5, {"kind0": [True], "kind1": [False], "kind2": [True]}),
        (-1, {"kind0": [True], "kind1": [True], "kind2": [False]}),
    ],
)
def test_one_wrong_token_makes_its_own_answer_wrong(
    reader: SequenceEncoder, position: int, expected: dict[str, list[bool]]
) -> None:
    """Bytes are tokens here: a space, "yes" and EOS are the first five labels."""

    def predict(batch: Batch) -> Tensor:
        predicted = batch.labels.clone()
        predicted[position] += 1
        return predicted

    assert exact_answers([conversation("yes", "no", "two")], reader, predict) == expected


def test_answers_of_a_batch_are_told_apart(reader: SequenceEncoder) -> None:
    def wrong_wherever_a_letter_is_n(batch: Batch) -> Tensor:
        letter = reader.tokenizer.encode("n")[0]
        return torch.where(batch.labels == letter, batch.labels + 1, batch.labels)

    right = exact_answers(
        [conversation("yes", "no"), conversation("no", "yes")], reader, wrong_wherever_a_letter_is_n
    )

    assert right == {"kind0": [True, False], "kind1": [False, True]}


def test_the_prediction_is_read_at_the_positions_before_the_labels(reader: SequenceEncoder) -> None:
    """States that spell, one hot, the token that comes next at every position."""
    batch = collate([[reader.encode(conversation("yes", "no"))[0]]], reader.tokenizer.pad_id)
    following = torch.roll(batch.input_ids, -1, dims=1)
    states = torch.nn.functional.one_hot(following, reader.tokenizer.vocab_size).float()

    predicted = argmax_at_labels(states, batch, lambda hidden: 2 * hidden)

    assert reader.tokenizer.decode(predicted.tolist()) == " yes no"
    assert torch.equal(predicted, batch.labels)
