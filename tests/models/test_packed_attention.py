"""Attention by segments, against the mask that says the same."""

import numpy as np
import pytest
import torch
from tests.models.tiny import CAPTION, CREATION, STORY, batch_of, dreamllm
from tests.models.tiny_language_models import FAMILIES, WINDOW
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from dreamllm.models.language_model import run_decoder
from dreamllm.models.packed_attention import NAME, attention_of, packed_attention, use_packed_attention
from dreamllm.sequence.batch import Batch, Segments, Sequence
from dreamllm.sequence.layout import Slots, SlotSizes
from dreamllm.sequence.packing import collate
from dreamllm.sequence.pixels import Pixels

LENGTHS = ((4, 6, 3), (5,), (6, 6))


def packed(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Batch:
    """Rows of documents of words, padded to one length."""
    rng = np.random.default_rng(0)
    empty = Pixels.of([], image_px=4)
    rows = [
        [
            Sequence(
                document_id=f"{row}-{number}",
                input_ids=rng.integers(3, 40, length),
                is_label=np.arange(length) > 0,
                slots=Slots(
                    sizes=SlotSizes(num_visual_tokens=1, num_dream_queries=1),
                    length=length,
                    image_starts=(),
                    dream_starts=(),
                ),
                vision_pixels=empty,
                target_pixels=empty,
                target_dreams=(),
            )
            for number, length in enumerate(documents)
        ]
        for row, documents in enumerate(lengths)
    ]
    return collate(rows, 0)


def test_segments_are_the_documents_and_the_padding_of_every_row() -> None:
    segments = packed().segments

    assert segments is not None
    # rows are padded to 16: 4 6 3 + 3, 5 + 11, 6 6 + 4
    assert segments.bounds.tolist() == [0, 4, 10, 13, 16, 21, 32, 38, 44, 48]
    assert segments.bounds.dtype == torch.int32
    assert segments.longest == 11


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_and_mask_give_the_same_states_and_gradients(family: str) -> None:
    batch = packed(((4, 6, 3, 3), (5, 6, 5)))
    assert batch.segments is not None
    assert batch.segments.longest <= WINDOW
    found = []
    for by_mask in (True, False):
        model = FAMILIES[family]().train()
        use_packed_attention(model)
        embeds = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        attention = batch.attention_mask() if by_mask else attention_of(model, batch)
        assert isinstance(attention, torch.Tensor if by_mask else Segments)
        states = run_decoder(model, embeds, attention, batch.position_ids)
        states.flatten(0, 1)[batch.label_positions].square().sum().backward()
        found.append((states.flatten(0, 1)[batch.label_positions], embeds.grad))

    assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)


def test_a_document_longer_than_a_window_takes_the_mask() -> None:
    model = FAMILIES["mistral"]()
    use_packed_attention(model)

    assert isinstance(attention_of(model, packed(((WINDOW + 1, 1),))), torch.Tensor)
    assert isinstance(attention_of(model, packed(((WINDOW, 2),))), Segments)


def test_the_loss_of_dreamllm_is_that_of_the_mask() -> None:
    model = dreamllm().train()
    batch = batch_of([[STORY, CAPTION], [CREATION]], 64)
    same = batch.document_index.flatten()
    edges = (same[1:] != same[:-1]).nonzero().flatten() + 1
    row = batch.input_ids.shape[1]
    ends = sorted({*edges.tolist(), *range(row, len(same) + 1, row)})
    bounds = torch.tensor([0, *ends], dtype=torch.int32)
    by_segments = Batch(
        **{name: getattr(batch, name) for name in Batch.__dataclass_fields__ if name != "segments"},
        segments=Segments(bounds, int(bounds.diff().max())),
    )
    assert model.language_model.config._attn_implementation == NAME

    losses = [
        {name: term.sum for name, term in model(each, torch.Generator().manual_seed(0)).items()}
        for each in (batch, by_segments)
    ]

    assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


def test_a_gpu_takes_all_documents_in_one_call() -> None:
    """The kernel is not run here; its arguments and the shape of its answer are checked."""
    with FakeTensorMode():
        query = torch.empty(2, 4, 16, 8, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(2, 2, 16, 8, device="cuda", dtype=torch.bfloat16)
        bounds = torch.empty(5, device="cuda", dtype=torch.int32)
        states, _ = packed_attention(
            torch.nn.Module(), query, key, key, None, scaling=0.3, segments=Segments(bounds, 9)
        )

    assert states.shape == (2, 16, 4, 8)
    assert states.dtype == torch.bfloat16
