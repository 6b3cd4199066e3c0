import copy

import pytest
import torch
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.freezing import apply_trainable, render_table
from dreamllm.models.quantization import quantize_linears
from dreamllm.models.special_token_rows import SpecialTokenRows, start_rows
from dreamllm.models.trainable import LoraConfig, Trainable

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


def test_the_image_decoder_trains_in_its_denoiser_and_stays_in_evaluation_mode():
    model = dreamllm()
    apply_trainable(model, Trainable(image_decoder=True))
    model.train()
    before = snapshot(model)

    train(model, batch_of([[STORY]], 30))

    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    denoiser = {name for name in before if name.startswith("image_decoder.unet.")}
    assert len(denoiser & moved) > 0.9 * len(denoiser)
    assert {name.split(".")[0] for name in moved - denoiser} == {
        "visual_projector",
        "dream_queries",
        "condition_projector",
    }
    assert not any(module.training for module in model.image_decoder.modules())


@pytest.mark.parametrize("quantized", [None, "nf4"])
def test_adapters_and_bracket_rows_train_together_and_the_rest_of_the_model_does_not(quantized):
    model = dreamllm()
    if quantized is not None:
        pytest.importorskip("bitsandbytes")
        quantize_linears(model.language_model.get_decoder(), quantized)
    groups = Trainable(
        language_model_lora=LoraConfig(rank=2), image_decoder_lora=LoraConfig(rank=2), special_token_rows=True
    )
    apply_trainable(model, groups, special_token_ids=BRACKETS)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}

    train(model, batch_of([[STORY]], 30))

    connectors = ("visual_projector.", "dream_queries.", "condition_projector.", "special_token_rows.")
    for name, tensor in model.named_parameters():
        trains = ".lora_" in name or name.startswith(connectors)
        assert torch.equal(tensor, before[name]) != trains, name


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


@pytest.mark.parametrize("quantized", [None, "int8", "nf4"])
def test_the_table_counts_adapters_apart_and_packed_weights_as_what_they_stand_for(quantized):
    model = dreamllm()
    size = sum(p.numel() for p in model.language_model.parameters())
    if quantized is not None:
        pytest.importorskip("bitsandbytes" if quantized == "nf4" else "torchao")
        quantize_linears(model.language_model.get_decoder(), quantized)

    rows = apply_trainable(model, Trainable(language_model_lora=LoraConfig(rank=2)))

    by_group = {row.group: (row.num_parameters, row.num_trainable) for row in rows}
    attention, gates = 4 * (32 + 32) * 2, 3 * (32 + 48) * 2
    assert by_group["language_model"] == (size, 0)
    assert by_group["language_model_lora"] == (2 * (attention + gates), 2 * (attention + gates))


def test_choices_that_cannot_be_meant_are_refused():
    for part in ("language_model", "image_decoder"):
        with pytest.raises(ConfigError, match=f"{part} is to train as a whole and by {part}_lora"):
            Trainable(**{part: True, f"{part}_lora": LoraConfig()})
    with pytest.raises(ConfigError, match=r"image_decoder_lora has dropout 0\.1"):
        Trainable(image_decoder_lora=LoraConfig(dropout=0.1))
    with pytest.raises(ConfigError, match="both to train"):
        Trainable(language_model=True, special_token_rows=True)
    with pytest.raises(ConfigError, match=r"token ids \[\]"):
        apply_trainable(dreamllm(), Trainable(special_token_rows=True))
    with pytest.raises(ConfigError, match="table of 48"):
        SpecialTokenRows(llama(), [48])


@TIED
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_new_tokens_get_rows_and_old_ones_keep_theirs(tie, init):
    model = llama(tie=tie)
    old = model.get_input_embeddings().weight.detach().clone()

    start_rows(model, range(48, 56), init=init, generator=torch.Generator().manual_seed(0))

    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert table.shape == head.shape == (56, 32)
    assert (table is head) == tie
    assert model.config.vocab_size == 56
    assert torch.equal(table[:48], old)
    if init == "mean":
        assert_close(table[50], old.mean(0))
    else:
        assert table[48:].std().item() == pytest.approx(0.02, rel=0.15)


def test_new_tokens_inside_a_padded_table_do_not_grow_it():
    model = llama()
    old = model.get_input_embeddings().weight.detach().clone()

    start_rows(model, [40, 42])

    table = model.get_input_embeddings().weight
    assert table.shape == old.shape
    assert_close(table[42], old[:40].mean(0))
    assert torch.equal(table[[*range(40), 41, *range(43, 48)]], old[[*range(40), 41, *range(43, 48)]])


def test_rows_need_known_rows_before_them():
    with pytest.raises(ConfigError, match=r"new rows are asked for at ids \[0, 1\]"):
        start_rows(llama(), [0, 1])
