"""Packing changes where documents stand and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import LayoutError
from dreamllm.sequence.batch import Batch, Sequence
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.layout import Slots, SlotSizes
from dreamllm.sequence.packing import collate, pack
from dreamllm.sequence.pixels import Pixels

MakeEncoder = Callable[..., SequenceEncoder]
SIZES = SlotSizes(num_visual_tokens=2, num_dream_queries=3)
PAD = 99


def text_sequence(length: int, name: str = "") -> Sequence:
    """Ids 1, 2, 3, ..; every second position is a label."""
    return Sequence(
        document_id=name,
        input_ids=np.arange(1, length + 1),
        is_label=np.arange(length) % 2 == 1,
        slots=Slots(sizes=SIZES, length=length, image_starts=(), dream_starts=()),
        vision_pixels=Pixels.of([], image_px=4),
        target_pixels=Pixels.of([], image_px=8),
        target_dreams=(),
    )


def picture_sequence(name: str, *, seeds: tuple[int, ...]) -> Sequence:
    """BOS and one dream slot with its picture."""
    return replace(
        text_sequence(6, name),
        slots=Slots(sizes=SIZES, length=6, image_starts=(), dream_starts=(2,)),
        target_pixels=Pixels(torch.zeros(1, 3, 8, 8)),
        target_dreams=(0,),
        noise_seeds=seeds,
    )


@st.composite
def any_sequence(draw: st.DrawFn) -> Sequence:
    """A sequence of random pieces, whose ids and pixels are all different."""
    ids, is_label, images, dreams = [0], [False], [], []
    for piece in draw(st.lists(st.sampled_from(["word", "label", "image", "dream"]), max_size=8)):
        size = {"image": 2, "dream": 3}.get(piece, 0)
        if size:
            (images if piece == "image" else dreams).append(len(ids) + 1)
        ids += [draw(st.integers(1, 10**9)) for _ in range(size + 2 if size else 1)]
        is_label += [False] * (len(ids) - len(is_label))
        is_label[-1] = piece == "label"
    targets = tuple(dream for dream in range(len(dreams)) if draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Sequence(
        document_id=str(draw(st.integers())),
        input_ids=np.asarray(ids, dtype=np.int64),
        is_label=np.asarray(is_label),
        slots=Slots(sizes=SIZES, length=len(ids), image_starts=tuple(images), dream_starts=tuple(dreams)),
        vision_pixels=Pixels(torch.from_numpy(rng.random((len(images), 3, 1, 1), dtype=np.float32))),
        target_pixels=Pixels(torch.from_numpy(rng.random((len(targets), 3, 1, 1), dtype=np.float32))),
        target_dreams=targets,
    )


def names_of(rows: list[list[Sequence]]) -> list[list[str]]:
    return [[sequence.document_id for sequence in row] for row in rows]


def test_rows_are_filled_evenly_by_hand() -> None:
    sequences = [
        text_sequence(length, name) for name, length in zip("abcdef", (3, 7, 2, 5, 4, 1), strict=True)
    ]

    rows = pack(sequences, 10)

    # first fit: b7 a3, d5 e4 f1, c2. Three rows; evenly: b7, d5, e4, then a3 to e, c2 to d, f1 to b
    assert names_of(rows) == [["a", "e"], ["b", "f"], ["c", "d"]]


def test_first_fit_stands_where_filling_evenly_makes_a_row_longer() -> None:
    sequences = [text_sequence(length, name) for name, length in zip("abcde", (3, 3, 2, 2, 2), strict=True)]

    # first fit: a3 b3, c2 d2 e2. Evenly: a3 c2 e2 would have 7
    assert names_of(pack(sequences, 6)) == [["a", "b"], ["c", "d", "e"]]


def test_equal_lengths_keep_their_order() -> None:
    sequences = [text_sequence(4, name) for name in "abcde"]

    rows = pack(sequences, 8)

    assert [[sequence.document_id for sequence in row] for row in rows] == [["a", "b"], ["c", "d"], ["e"]]


def test_packing_can_be_switched_off() -> None:
    sequences = [text_sequence(2), text_sequence(3)]

    assert pack(sequences, 100, enabled=False) == [[sequences[0]], [sequences[1]]]
    assert pack([], 100) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_document_longer_than_a_row_is_refused(enabled: bool) -> None:
    with pytest.raises(LayoutError, match="'long' has 9 positions, but a row has 8"):
        pack([text_sequence(2), text_sequence(9, "long")], 8, enabled=enabled)


@given(lengths=st.lists(st.integers(1, 20), max_size=30), room=st.integers(20, 50))
def test_every_sequence_is_packed_once_into_rows_that_are_not_wasted(lengths: list[int], room: int) -> None:
    sequences = [text_sequence(length) for length in lengths]

    rows = pack(sequences, room)

    assert sorted(id(s) for row in rows for s in row) == sorted(id(s) for s in sequences)
    used = [sum(len(s.input_ids) for s in row) for row in rows]
    assert all(size <= room for size in used)
    assert len(rows) < 2 or sum(lengths) * 2 > room * len(rows)  # rows half empty would have been fewer
    order = {id(s): index for index, s in enumerate(sequences)}
    indices = [[order[id(s)] for s in row] for row in rows]
    assert indices == sorted(sorted(row) for row in indices)


def test_two_rows_by_hand() -> None:
    batch = collate([[text_sequence(3, "a"), text_sequence(2, "b")], [text_sequence(9, "c")]], PAD)

    assert batch.input_ids.tolist() == [
        [1, 2, 3, 1, 2, *[PAD] * 11],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, *[PAD] * 7],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, *[0] * 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, *[0] * 7]]
    assert batch.document_index.tolist() == [[1, 1, 1, 2, 2, *[0] * 11], [*[1] * 9, *[0] * 7]]
    assert batch.label_positions.tolist() == [0, 3, 16, 18, 20, 22]
    assert batch.labels.tolist() == [2, 2, 2, 4, 6, 8]
    assert batch.document_ids == ("a", "b", "c")
    assert batch.label_documents.tolist() == [0, 1, 2, 2, 2, 2]
    assert (batch.num_labels, batch.num_targets) == (6, 0)


def test_a_row_length_that_is_a_multiple_of_eight_is_kept() -> None:
    assert collate([[text_sequence(8)]], PAD).input_ids.shape == (1, 8)


def test_a_batch_without_pictures_and_labels_has_empty_tensors_of_full_shape() -> None:
    silent = replace(text_sequence(3), is_label=np.zeros(3, dtype=np.bool_))

    batch = collate([[silent]], PAD)

    assert batch.image_slots.shape == (0, 2)
    assert batch.dream_slots.shape == (0, 3)
    assert batch.vision_pixels.levels.shape == (0, 3, 4, 4)
    assert batch.target_pixels.levels.shape == (0, 3, 8, 8)
    for tensor in (batch.target_dreams, batch.labels, batch.label_positions):
        assert tensor.shape == (0,)
        assert tensor.dtype == torch.int64


@settings(deadline=None)
@given(sequences=st.lists(any_sequence(), min_size=1, max_size=6), enabled=st.booleans())
def test_every_label_slot_and_picture_arrives_once(sequences: list[Sequence], enabled: bool) -> None:
    rows = pack(sequences, 60, enabled=enabled)
    batch = collate(rows, PAD)
    in_order = [sequence for row in rows for sequence in row]
    ids, document, position = (
        tensor.flatten() for tensor in (batch.input_ids, batch.document_index, batch.position_ids)
    )

    expected = np.concatenate([s.input_ids[s.is_label] for s in in_order])
    np.testing.assert_array_equal(batch.labels, expected)
    assert ids[batch.label_positions + 1].tolist() == batch.labels.tolist()
    assert torch.equal(document[batch.label_positions], document[batch.label_positions + 1])
    assert torch.equal(position[batch.label_positions] + 1, position[batch.label_positions + 1])
    for table, kept in (
        (batch.image_slots, [s.input_ids[s.slots.image_positions()] for s in in_order]),
        (batch.dream_slots, [s.input_ids[s.slots.dream_positions()] for s in in_order]),
    ):
        np.testing.assert_array_equal(ids[table].numpy(), np.concatenate(kept))
    slots = torch.cat([batch.image_slots.flatten(), batch.dream_slots.flatten()])
    assert len(slots.unique()) == len(slots)
    assert torch.equal(batch.vision_pixels.levels, torch.cat([s.vision_pixels.levels for s in in_order]))
    assert torch.equal(batch.target_pixels.levels, torch.cat([s.target_pixels.levels for s in in_order]))
    queries = [s.input_ids[s.slots.dream_positions()[list(s.target_dreams)]] for s in in_order]
    np.testing.assert_array_equal(
        ids[batch.dream_slots[batch.target_dreams]].numpy(), np.concatenate(queries)
    )
    assert (document > 0).sum() == sum(len(s.input_ids) for s in sequences)
    assert (ids[document == 0] == PAD).all()
    assert batch.input_ids.shape[1] % 8 == 0


@settings(deadline=None)
@given(sequences=st.lists(any_sequence(), min_size=1, max_size=4))
def test_the_mask_is_causal_and_stays_inside_a_document(sequences: list[Sequence]) -> None:
    batch = collate([sequences], PAD)
    document = batch.document_index[0].tolist()

    mask = batch.attention_mask()[0, 0]

    expected = [
        [q == k or (k < q and document[q] == document[k] > 0) for k in range(len(document))]
        for q in range(len(document))
    ]
    assert mask.tolist() == expected


def test_sequences_of_two_kinds_and_empty_batches_are_refused() -> None:
    other = replace(text_sequence(3), vision_pixels=Pixels.of([], image_px=5))

    with pytest.raises(LayoutError, match="2 kinds cannot share a batch"):
        collate([[text_sequence(3), other]], PAD)
    with pytest.raises(LayoutError, match="0 sequences"):
        collate([], PAD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_label": np.zeros(2, dtype=np.bool_)}, "4 ids, 2 label flags"),
        ({"is_label": np.ones(4, dtype=np.bool_)}, "a label at the first"),
        ({"vision_pixels": Pixels(torch.zeros(1, 3, 4, 4))}, "1 pictures for 0 image slots"),
        ({"target_pixels": Pixels(torch.zeros(1, 3, 8, 8))}, "1 targets for 0 target slots"),
        (
            {"target_pixels": Pixels(torch.zeros(1, 3, 8, 8)), "target_dreams": (0,)},
            r"dream slots \(0,\) of 0",
        ),
    ],
)
def test_a_sequence_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        replace(text_sequence(4), **change)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,  # a model that cares about its context
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def logits(llama: LlamaForCausalLM, batch: Batch, embeds: Tensor) -> Tensor:
    with torch.no_grad():
        output = llama(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask(),
            position_ids=batch.position_ids,
            use_cache=False,
        )
    return output.logits


@pytest.fixture(scope="module")
def illustrated(make_encoder: MakeEncoder) -> list[Sequence]:
    def show(*, learn: bool) -> Image:
        return Image(source=PILImage.new("RGB", (8, 8)), learn=learn)

    documents = [
        Document(parts=(Text(text="a red cat"), show(learn=True), Text(text="and a dog"))),
        Document(parts=(show(learn=False), Text(text="blue dog"))),
        Document(parts=(Text(text="a cat", learn=False), show(learn=True))),
        Document(parts=(Text(text="a"),)),
    ]
    return [make_encoder().encode(document)[0] for document in documents]


def test_packed_logits_equal_those_of_documents_alone(
    llama: LlamaForCausalLM, illustrated: list[Sequence]
) -> None:
    rows = pack(illustrated, 48)
    assert len(rows) < len(illustrated)
    batch = collate(rows, 13)

    packed = logits(llama, batch, llama.get_input_embeddings()(batch.input_ids))

    for row, documents in enumerate(rows):
        for number, sequence in enumerate(documents, start=1):
            ids = torch.from_numpy(sequence.input_ids)[None]
            with torch.no_grad():  # the stock model, with no mask, padding or positions of ours
                alone = llama(input_ids=ids, use_cache=False).logits[0]

            inside = packed[row][batch.document_index[row] == number]
            assert_close(inside, alone, atol=1e-5, rtol=1e-5)


def test_a_change_in_one_document_moves_no_logit_of_another(
    llama: LlamaForCausalLM, illustrated: list[Sequence]
) -> None:
    batch = collate([illustrated], 13)
    embeds = llama.get_input_embeddings()(batch.input_ids).detach()
    before = logits(llama, batch, embeds)

    for number in range(5):  # 0 is padding
        generator = torch.Generator().manual_seed(number)
        changed = embeds.clone()
        changed[batch.document_index == number] += torch.randn(32, generator=generator)
        moved = (logits(llama, batch, changed) - before).abs().amax(-1)

        assert moved[batch.document_index != number].max() == 0
        assert moved[batch.document_index == number].min() > 1e-3


def test_a_batch_moves_as_a_whole(illustrated: list[Sequence]) -> None:
    batch = collate([illustrated], 13)

    moved = batch.to("meta")

    assert {
        moved.input_ids.device.type,
        moved.vision_pixels.levels.device.type,
        moved.labels.device.type,
    } == {"meta"}
    assert moved.document_ids == batch.document_ids


def test_noise_seeds_follow_their_pictures_and_none_may_be_missing() -> None:
    first, second = picture_sequence("a", seeds=(5,)), picture_sequence("b", seeds=(2**62,))

    batch = collate([[first], [text_sequence(3), second]], PAD)

    assert batch.noise_seeds == (5, 2**62)
    with pytest.raises(LayoutError, match=r"1 of 2 sequences with targets have noise seeds; expected all or"):
        collate([[first, picture_sequence("c", seeds=())]], PAD)
    with pytest.raises(LayoutError, match=r"document 'd' has 2 noise seeds for 1 targets"):
        picture_sequence("d", seeds=(1, 2))
