"""Sequences of JAM beyond their layout: retrieved documents, spans that move, packing, what is refused."""

import numpy as np
import pytest
import torch
from tests.sequence.code_sequences import (
    document,
    given,
    joint_tokens,
    make_encoder,
    say,
    sentence,
    show,
    spell,
)

from dreamllm.data.mixture import Mixture
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Image
from dreamllm.errors import DocumentError, LayoutError
from dreamllm.sequence.cm3 import Cm3Config, invert
from dreamllm.sequence.packing import collate, pack
from dreamllm.train.objectives.document_steps import DocumentSteps

RED, BLUE = document(say("red"), show(1), id="red"), document(say("blue"), show(5), id="blue")
READ = document(show(9), say("dog"), id="read")
QUERY = document(say("a cat", learn=False), show(20))
QUESTION = document(say("a ?", role="user"), say("a dog", role="assistant"))
CONTEXTS = {
    "in the order they are given, as in the paper": (
        QUERY,
        [RED, BLUE],
        "<s> red [1] | blue [5] | a cat [20*] </s>*",
    ),
    "words at an end are closed by EOS": (
        QUERY,
        [READ, RED],
        "<s> [9] | dog </s> red [1] | a cat [20*] </s>*",
    ),
    "before a conversation": (QUESTION, [RED], "<s> red [1] | USER: a ? ASSISTANT: a* dog* </s>*"),
    "before a picture": (document(show(20)), [RED], "<s> red [1] | [20*] </s>*"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_retrieved_documents_stand_before_the_query_and_are_not_learned(name: str) -> None:
    query, context, expected = CONTEXTS[name]

    (sequence,) = make_encoder().encode(query, context=context)

    assert spell(sequence) == sentence(expected)


def test_retrieved_documents_are_learned_like_the_rest_with_all() -> None:
    (sequence,) = make_encoder(learn="all").encode(QUERY, context=[RED])

    assert spell(sequence) == sentence("<s> red* [1*] |* a* cat* [20*] </s>*")


@pytest.mark.parametrize("learn", ["marked", "all"])
def test_a_prompt_takes_retrieved_documents_and_is_a_prefix_of_the_training_form(learn: str) -> None:
    encoder = make_encoder(learn=learn)
    (full,) = encoder.encode(QUERY, context=[READ, RED])

    prompt = encoder.encode_prompt(document(say("a cat")), context=[READ, RED])

    assert spell(prompt) == sentence("<s> [9] | dog </s> red [1] | a cat")
    np.testing.assert_array_equal(full.input_ids[: len(prompt.input_ids)], prompt.input_ids)


# The query has 7 positions, RED and BLUE 5 each, READ 6.
@pytest.mark.parametrize(
    ("max_length", "num_kept"), [(7, 0), (11, 0), (12, 1), (16, 1), (17, 2), (22, 2), (23, 3), (99, 3)]
)
def test_what_does_not_fit_is_left_out_from_the_front(max_length: int, num_kept: int) -> None:
    encoder, context = make_encoder(max_length=max_length), [READ, RED, BLUE]
    expected = context[len(context) - num_kept :]

    (sequence,) = encoder.encode(QUERY, context=context)

    assert encoder.context_that_fits(QUERY, context) == tuple(expected)
    assert spell(sequence) == spell(encoder.encode(QUERY, context=expected)[0])
    assert len(sequence.input_ids) <= max_length


def test_a_document_behind_one_that_does_not_fit_is_left_out_too() -> None:
    long = document(say("a " * 50), id="long")

    assert make_encoder(max_length=40).context_that_fits(QUERY, [RED, long, BLUE]) == (BLUE,)


def test_a_prompt_keeps_room_for_what_will_be_written() -> None:
    encoder, prompt = make_encoder(max_length=20), document(say("a cat"))  # 3 positions

    for room, kept in ((0, (RED, BLUE)), (7, (RED, BLUE)), (8, (BLUE,)), (12, (BLUE,)), (13, ())):
        assert encoder.context_that_fits(prompt, [RED, BLUE], prompt=True, room=room) == kept
        sequence = encoder.encode_prompt(prompt, context=[RED, BLUE], room=room)
        assert spell(sequence) == spell(encoder.encode_prompt(prompt, context=kept))


def test_training_keeps_room_for_sentinels() -> None:
    encoder = make_encoder(max_length=20, cm3=Cm3Config(probability=1, max_spans=2))

    assert encoder.context_that_fits(QUERY, [RED, BLUE]) == (BLUE,)  # 17 and 4 are more than 20
    for seed in range(20):
        (sequence,) = encoder.encode(QUERY, context=[RED, BLUE], rng=np.random.default_rng(seed))
        assert joint_tokens().infill in sequence.input_ids
        assert len(sequence.input_ids) <= 20


def test_a_retrieved_conversation_is_refused_even_if_it_would_not_fit() -> None:
    context = [document(*QUESTION.parts, id="talk"), RED]

    for encoder in (make_encoder(), make_encoder(max_length=7)):
        with pytest.raises(DocumentError, match=r"'talk', retrieved for 'd', is a conversation of 2 parts"):
            encoder.encode(QUERY, context=context)
    with pytest.raises(DocumentError, match="retrieve from plain documents"):
        make_encoder().encode_prompt(QUERY, context=context)


def test_spans_of_the_document_move_and_retrieved_documents_stay() -> None:
    tokens, plain = joint_tokens(), make_encoder()
    encoder = make_encoder(cm3=Cm3Config(probability=1))
    (expected,) = plain.encode(QUERY, context=[RED, READ])
    start = len(plain.encode_prompt(document(), context=[RED, READ]).input_ids)

    for seed in range(30):
        (sequence,) = encoder.encode(QUERY, context=[RED, READ], rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(sequence.input_ids[:start], expected.input_ids[:start])
        np.testing.assert_array_equal(invert(sequence.input_ids, tokens), expected.input_ids)
        assert tokens.mask in sequence.input_ids[start:]
        assert sequence.is_label.sum() == expected.is_label.sum()


@pytest.mark.parametrize(("max_length", "num_spans"), [(7, 0), (8, 0), (9, 1), (10, 1), (11, 2)])
def test_no_more_spans_move_than_fit(max_length: int, num_spans: int) -> None:
    encoder = make_encoder(max_length=max_length, cm3=Cm3Config(probability=1, max_spans=2))

    found = {
        int(
            (encoder.encode(QUERY, rng=np.random.default_rng(seed))[0].input_ids == joint_tokens().mask).sum()
        )
        for seed in range(30)
    }

    assert max(found) == num_spans  # QUERY has 7 positions
    assert min(found) == min(num_spans, 1)


def test_a_whole_caption_moves_behind_its_picture() -> None:
    encoder = make_encoder(learn="all", cm3=Cm3Config(probability=1, max_spans=1, whole_segment=1))
    expected = {
        sentence("<s> <mask> [20*] <infill> a* cat* </s>*"),
        sentence("<s> a* cat* |* <mask> <infill> c20* c21* </s>*"),
    }

    found = {spell(encoder.encode(QUERY, rng=np.random.default_rng(seed))[0]) for seed in range(20)}

    assert found == expected


def test_conversations_are_transformed_only_where_all_is_learned() -> None:
    cm3, mask = Cm3Config(probability=1), joint_tokens().mask

    for learn, is_transformed in (("marked", False), ("all", True)):
        (sequence,) = make_encoder(learn=learn, cm3=cm3).encode(QUESTION, rng=np.random.default_rng(0))
        assert (mask in sequence.input_ids) == is_transformed


def test_the_generator_alone_decides() -> None:
    encoder = make_encoder(cm3=Cm3Config(), mask_prompt=0.3)

    runs = [
        [spell(encoder.encode(QUERY, rng=rng)[0]) for _ in range(20)]
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    ]

    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3


def test_sequences_are_packed_and_batched_as_they_are() -> None:
    encoder = make_encoder()
    sequences = [encoder.encode(each)[0] for each in (RED, QUESTION, READ)]  # 6, 8 and 7 positions

    packed = pack(sequences, 14)
    batch = collate([sequences[:2], sequences[2:]], encoder.tokenizer.pad_id)

    assert [[len(sequence.input_ids) for sequence in row] for row in packed] == [[6, 7], [8]]
    assert batch.input_ids.shape == (2, 16)
    assert batch.document_index[0].tolist() == [1] * 6 + [2] * 8 + [0] * 2
    np.testing.assert_array_equal(batch.input_ids[0, :6], sequences[0].input_ids)
    np.testing.assert_array_equal(batch.input_ids[1, :7], sequences[2].input_ids)
    # RED and READ learn everything after BOS, QUESTION "a dog </s>", which stands at 11 in the row.
    assert batch.label_positions.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 16, 17, 18, 19, 20, 21]
    assert torch.equal(batch.labels, batch.input_ids.flatten()[batch.label_positions + 1])
    assert batch.image_slots.numel() == batch.dream_slots.numel() == batch.num_targets == 0


def test_a_document_that_does_not_fit_is_refused_before_its_pictures_are_opened() -> None:
    parts = (Image(source=b"not a picture"), say("a cat"))  # 8 positions, 7 as a prompt

    for encode in ("encode", "encode_prompt"):
        with pytest.raises(LayoutError, match=r"'seven' has .* 1 pictures of 2 codes; at most 5"):
            getattr(make_encoder(max_length=5), encode)(Document(parts=parts, id="seven"))
    (fits,) = make_encoder(max_length=8).encode(document(given(1), say("a cat")))
    assert len(fits.input_ids) == 8


def test_pictures_without_an_image_tokenizer_are_refused() -> None:
    encoder = make_encoder(None)

    assert spell(encoder.encode(document(say("a cat")))[0]) == "<s> a* cat* </s>*"
    assert spell(encoder.unconditional()) == "<s> <mask> <break>"
    for encode in (encoder.encode, encoder.encode_prompt):
        with pytest.raises(DocumentError, match="'d' has 1 pictures, but the model has no image tokenizer"):
            encode(QUERY)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), r"shape \(1, 3\); expected \(1, 2\)"),
        (torch.zeros(2, 2, dtype=torch.int64), r"shape \(2, 2\); expected \(1, 2\)"),
        (torch.tensor([[0, 256]]), "from 0 to 256; expected 0 to 255"),
        (torch.tensor([[-1, 3]]), "from -1 to 3; expected 0 to 255"),
    ],
)
def test_codes_that_do_not_fit_the_vocabulary_are_refused(codes: torch.Tensor, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make_encoder(lambda pixels: codes).encode(QUERY)


def test_steps_of_a_run_are_pure_functions_of_their_number() -> None:
    encoder = make_encoder(cm3=Cm3Config(), mask_prompt=0.3, learn="all")
    documents = {"draw_pair": 1.0, "ask_story": 1.0}
    phases = (PhaseConfig(sources=(WorldSourceConfig(documents=documents),)),)
    mixture = Mixture(phases, steps=2, documents_per_step=6, seed=0)

    first, again = (
        DocumentSteps(mixture, encoder, steps=2, row_length=512, rows_per_micro_batch=2, seed=1)
        for _ in range(2)
    )

    again[0]  # what was asked before changes nothing
    for one, other in zip(first[1], again[1], strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.label_positions, other.label_positions)
    assert joint_tokens().mask in torch.cat([batch.input_ids.flatten() for batch in first[1]])
