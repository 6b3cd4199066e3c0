"""Adapters in stock parts, and the stock parts that come out of them."""

import importlib.util

import pytest
import torch
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama
from tests.models.tiny_decoders import sana, stable_diffusion_3, stable_diffusion_xl
from tests.models.tiny_language_models import FAMILIES
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.lora import add_lora, lora_parameters, merge_in_place, merged
from dreamllm.models.quantization import quantize_linears
from dreamllm.models.trainable import LoraConfig, Trainable

pytest.importorskip("peft")

SMALL = LoraConfig(rank=2, alpha=3.0)
IDS = torch.tensor([[1, 5, 6, 7, 30]])


def speaking(model: nn.Module) -> nn.Module:
    """The model with adapters that do something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(0.0, 0.3)
    return model


def trained(model, batch, steps=2):
    """A few steps on all that trains."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.02)
    for step in range(steps):
        optimizer.zero_grad()
        terms = model(batch, torch.Generator().manual_seed(step))
        (terms["next_token"].sum + terms["denoising"].sum).backward()
        optimizer.step()
    return model


def outputs(model, batch):
    with torch.no_grad():
        hidden = model.hidden_states(batch)
        terms = model(batch, torch.Generator().manual_seed(9))
        return model.logits(hidden), terms["next_token"].sum, terms["denoising"].sum


def test_an_adapter_adds_alpha_over_rank_times_b_a_x() -> None:
    model = llama()
    weight = model.model.layers[1].mlp.up_proj.weight.detach().clone()

    add_lora(model, SMALL)

    layer = speaking(model).model.layers[1].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(4, 32)
    assert (a.shape, b.shape) == ((2, 32), (48, 2))
    assert_close(layer(x), x @ weight.T + 1.5 * (x @ a.T @ b.T))


def test_a_language_model_with_new_adapters_is_the_same_stock_model() -> None:
    model = llama().eval()
    decoder, table, head = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    before = model(IDS).logits

    add_lora(model, SMALL)

    assert type(model) is LlamaForCausalLM
    assert (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()) == (
        decoder,
        table,
        head,
    )
    assert torch.equal(model(IDS).logits, before)
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_blocks_is_adapted_and_neither_table_nor_head(family: str) -> None:
    model = FAMILIES[family]()
    linears = {name for name, layer in model.get_decoder().named_modules() if isinstance(layer, nn.Linear)}

    add_lora(model, SMALL)

    adapted = {name for name, layer in model.get_decoder().named_modules() if hasattr(layer, "lora_A")}
    assert adapted == linears
    assert not any(
        name.startswith("lm_head") or "embed" in name
        for name, p in model.named_parameters()
        if "lora_" in name
    )


def test_layers_are_adapted_by_the_ends_of_their_names() -> None:
    model = llama()

    add_lora(model, LoraConfig(rank=2, target_modules=("q_proj", "layers.1.mlp.down_proj")))

    assert {name for name, layer in model.named_modules() if hasattr(layer, "lora_A")} == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    }


def test_a_name_that_no_layer_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="LlamaForCausalLM has a name that ends in w_q; there are down_proj, gate_"
    ):
        add_lora(llama(), LoraConfig(target_modules=("w_q",)))


@pytest.mark.parametrize("make", [stable_diffusion_xl, stable_diffusion_3, sana])
def test_projections_of_attention_are_adapted_in_every_kind_of_denoiser(make) -> None:
    denoiser = make().denoiser

    add_lora(denoiser, SMALL)

    adapted = {name for name, layer in denoiser.named_modules() if hasattr(layer, "lora_A")}
    attentions = [
        name
        for name, layer in denoiser.named_modules()
        if hasattr(layer, "to_out") and hasattr(layer, "to_q")
    ]
    assert attentions
    for name in attentions:
        assert {f"{name}.{end}" for end in ("to_q", "to_k", "to_v", "to_out.0")} <= adapted, name
    assert all(".attn" in name or "attentions" in name for name in adapted)


@pytest.mark.parametrize("kind", [None, "int8", "float8", "nf4"])
def test_a_merged_model_computes_what_its_adapters_did(kind: str | None) -> None:
    if kind is not None:
        pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")
    model, batch = dreamllm(), batch_of([[STORY]], 30)
    if kind is not None:
        quantize_linears(model.language_model.get_decoder(), kind)
    groups = Trainable(language_model_lora=SMALL, image_decoder_lora=SMALL, special_token_rows=True)
    apply_trainable(model, groups, special_token_ids=BRACKETS)
    untrained = outputs(model, batch)
    trained(model, batch)

    twin = merged(model)

    assert_close(outputs(twin, batch), outputs(model, batch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs(twin, batch)[0], untrained[0], atol=1e-3)
    assert not lora_parameters(twin)
    stock = dreamllm()
    for name in ("language_model", "image_decoder"):
        shapes = {key: (value.shape, value.dtype) for key, value in getattr(stock, name).state_dict().items()}
        assert {k: (v.shape, v.dtype) for k, v in getattr(twin, name).state_dict().items()} == shapes


def test_merging_a_copy_leaves_the_model_as_it_was_and_shares_what_is_not_adapted() -> None:
    model, batch = dreamllm(), batch_of([[STORY]], 30)
    apply_trainable(model, Trainable(language_model_lora=SMALL))
    speaking(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    twin = merged(model)
    trained(model, batch)
    unmerged = dreamllm()
    apply_trainable(unmerged, Trainable(language_model_lora=SMALL))
    unmerged.load_state_dict(before)
    trained(unmerged, batch)

    assert all(torch.equal(unmerged.state_dict()[name], value) for name, value in model.state_dict().items())
    assert twin.image_decoder.vae.decoder.conv_in.weight is model.image_decoder.vae.decoder.conv_in.weight
    assert twin.language_model.lm_head.weight is model.language_model.lm_head.weight


def test_adapters_of_one_stage_are_part_of_the_model_in_the_next() -> None:
    model, batch = dreamllm(), batch_of([[STORY]], 30)
    apply_trainable(model, Trainable(language_model_lora=SMALL))
    speaking(model.language_model)
    before = outputs(model, batch)

    rows = apply_trainable(model, Trainable(language_model=True))

    assert_close(outputs(model, batch), before, atol=1e-5, rtol=1e-5)
    assert not lora_parameters(model)
    assert all(p.requires_grad for p in model.language_model.parameters())
    assert [row.group for row in rows if row.group.endswith("_lora")] == []


def test_a_model_without_adapters_is_not_touched_by_merging() -> None:
    model = llama()
    layers = list(model.modules())

    merge_in_place(model)

    assert list(model.modules()) == layers


def test_without_peft_the_error_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"LoRA needs peft.*pip install 'dreamllm\[lora\]'"):
        add_lora(llama(), SMALL)


@pytest.mark.parametrize("change", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_adapters_that_cannot_be_meant_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected rank >= 1, alpha > 0 and 0 <= dropout < 1"):
        LoraConfig(**change)
