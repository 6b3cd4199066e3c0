import copy

import pytest
import torch
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.freezing import Trainable, apply_trainable, render_table
from dreamllm.models.special_token_rows import SpecialTokenRows, grow_vocabulary

TIED = pytest.mark.parametrize("tie", [False, True])


def train(model, batch, steps=3):
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.05, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        terms = model(batch, torch.Generator().manual_seed(step))
        (terms["next_token"].sum + terms["denoising"].sum).backward()
        optimizer.step()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_first_stage_moves_the_connectors_and_nothing_else():
    model = dreamllm()
    apply_trainable(model, Trainable())
    before = snapshot(model)

    train(model, batch_of([[STORY]], 30), steps=2)

    for name, tensor in model.state_dict().items():
        connector = name.startswith(("visual_projector.", "dream_queries.", "condition_projector."))
        assert torch.equal(tensor, before[name]) != connector, name


def test_the_later_stages_train_the_language_model_too():
    model = dreamllm()

    apply_trainable(model, Trainable(language_model=True))

    assert all(p.requires_grad for p in model.language_model.parameters())
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    assert not any(p.requires_grad for p in model.image_decoder.parameters())


@TIED
def test_only_bracket_rows_move_to_the_last_bit_and_survive_the_stage(tie):
    model = dreamllm(llama(tie=tie))
    before = copy.deepcopy(model.language_model.state_dict())
    batch = batch_of([[STORY]], 30)
    apply_trainable(model, Trainable(special_token_rows=True), special_token_ids=BRACKETS)

    train(model, batch)
    trained = model(batch, torch.Generator().manual_seed(0))["next_token"].sum
    apply_trainable(model, Trainable(language_model=True))

    after = model.language_model.state_dict()
    others = [i for i in range(48) if i not in BRACKETS]
    for name, tensor in after.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensor[others], before[name][others]), name
            assert (tensor[list(BRACKETS)] != before[name][list(BRACKETS)]).any(dim=1).all(), name
        else:
            assert torch.equal(tensor, before[name]), name
    assert model.special_token_rows is None
    assert_close(model(batch, torch.Generator().manual_seed(0))["next_token"].sum, trained)


@TIED
def test_separate_rows_have_the_gradient_of_rows_of_the_table(tie):
    batch = batch_of([[STORY]], 30)
    whole, rows = dreamllm(llama(tie=tie)), dreamllm(llama(tie=tie))
    apply_trainable(rows, Trainable(special_token_rows=True), special_token_ids=BRACKETS)

    for model in (whole, rows):
        model(batch, torch.Generator().manual_seed(0))["next_token"].sum.backward()

    ids = sorted(BRACKETS)
    embedding = whole.language_model.get_input_embeddings().weight.grad[ids]
    assert_close(rows.special_token_rows.embedding_rows.grad, embedding)
    if not tie:
        head = whole.language_model.get_output_embeddings().weight.grad[ids]
        assert_close(rows.special_token_rows.head_rows.grad, head)


def test_writing_back_changes_nothing_that_is_computed():
    model, batch = dreamllm(), batch_of([[STORY]], 30)
    apply_trainable(model, Trainable(special_token_rows=True), special_token_ids=BRACKETS)
    with torch.no_grad():
        model.special_token_rows.embedding_rows.add_(1.0)
        model.special_token_rows.head_rows.sub_(1.0)
    hidden = model.hidden_states(batch)

    model.special_token_rows.write_back()

    assert torch.equal(model.hidden_states(batch), hidden)
    assert_close(
        model.logits(hidden), torch.nn.functional.linear(hidden, model.language_model.lm_head.weight)
    )


def test_the_table_counts_every_parameter_once():
    model = dreamllm()
    size = sum(p.numel() for p in model.parameters())

    rows = apply_trainable(model, Trainable(special_token_rows=True), special_token_ids=BRACKETS)

    by_group = {row.group: row for row in rows}
    assert sum(row.num_parameters for row in rows) == size + 2 * 4 * 32
    assert by_group["special_token_rows"].num_trainable == 2 * 4 * 32
    assert by_group["dream_queries"].num_trainable == 3 * 32
    assert by_group["visual_projector"].num_trainable == 16 * 32 + 32
    assert by_group["language_model"].num_trainable == 0
    assert by_group["image_decoder"].num_frozen == sum(p.numel() for p in model.image_decoder.parameters())
    lines = render_table(rows).splitlines()
    assert lines[0].split() == ["group", "parameters", "trainable", "frozen"]
    assert lines[-1].split()[1] == f"{size + 2 * 4 * 32:,}"
    assert len(lines) == len(rows) + 2


def test_choices_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match="both to train"):
        Trainable(language_model=True, special_token_rows=True)
    with pytest.raises(ConfigError, match=r"token ids \[\]"):
        apply_trainable(dreamllm(), Trainable(special_token_rows=True))
    with pytest.raises(ConfigError, match="table of 48"):
        SpecialTokenRows(llama(), [48])


@TIED
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_a_grown_vocabulary_keeps_its_old_rows(tie, init):
    model = llama(tie=tie)
    old = model.get_input_embeddings().weight.detach().clone()

    grow_vocabulary(model, 56, init=init, generator=torch.Generator().manual_seed(0))

    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert table.shape == head.shape == (56, 32)
    assert (table is head) == tie
    assert model.config.vocab_size == 56
    assert torch.equal(table[:48], old)
    if init == "mean":
        assert_close(table[50], old.mean(0))
    else:
        assert table[48:].std().item() == pytest.approx(0.02, rel=0.15)


def test_rows_are_never_dropped():
    with pytest.raises(ConfigError, match="40 tokens but the language model 48 rows"):
        grow_vocabulary(llama(), 40)
