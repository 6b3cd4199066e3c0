"""Weights in 8 and 4 bits: what is computed, what is counted, what is refused."""

import importlib.util

import pytest
import torch
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama
from tests.models.tiny_language_models import FAMILIES
from torch import nn
from torch.testing import assert_close

from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.quantization import is_quantized, num_weights, plain_weight, quantize_linears
from dreamllm.models.trainable import Trainable

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")

KINDS = pytest.mark.parametrize("kind", ["int8", "float8", "nf4"])
RELATIVE_ERROR = {"int8": 0.5 / 127, "float8": 2**-4, "nf4": (1 - 0.696) / 2}
"""Largest error of a weight over the largest weight of its row: half a step of 127 levels, of three bits of
mantissa, and of the widest gap of NF4 (between -1 and -0.696)."""


def values(parameter: nn.Parameter) -> torch.Tensor:
    """A copy that can be compared."""
    return parameter.detach().dequantize() if hasattr(parameter, "qdata") else parameter.detach().clone()


@KINDS
def test_a_weight_is_off_by_half_a_step_at_most_and_the_layer_computes_with_it(kind: str) -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(64, 32))
    before, bias = part[0].weight.detach().clone(), part[0].bias.detach().clone()
    x = torch.randn(5, 64, requires_grad=True)

    quantize_linears(part, kind)

    weight = plain_weight(part[0])
    assert is_quantized(part[0])
    assert weight.dtype == torch.float32
    largest = before.abs().amax(1, keepdim=True)
    assert 0 < ((weight - before).abs() / largest).max() < 1.01 * RELATIVE_ERROR[kind]
    output = part(x)
    assert_close(output, nn.functional.linear(x, weight, bias))
    output.sum().backward()
    assert_close(x.grad, weight.sum(0).expand(5, 64))
    assert [name for name, each in part.named_parameters() if each.requires_grad] == ["0.bias"]


@KINDS
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_any_language_model_are_quantised_and_its_tables_are_not(kind: str, family: str) -> None:
    model = FAMILIES[family]()
    size = sum(each.numel() for each in model.parameters())
    tables = (model.get_input_embeddings(), model.get_output_embeddings())

    quantize_linears(model.get_decoder(), kind)

    linears = [layer for layer in model.get_decoder().modules() if isinstance(layer, nn.Linear)]
    assert linears
    assert all(is_quantized(layer) for layer in linears)
    assert (model.get_input_embeddings(), model.get_output_embeddings()) == tables
    assert not any(is_quantized(table) for table in tables)
    assert sum(num_weights(each) for each in model.parameters()) == size


@KINDS
def test_bracket_rows_train_upon_a_quantised_language_model(kind: str) -> None:
    model = dreamllm()
    quantize_linears(model.language_model.get_decoder(), kind)
    before = {name: values(each) for name, each in model.named_parameters()}
    rows = apply_trainable(model, Trainable(special_token_rows=True), special_token_ids=BRACKETS)
    learned = [each for each in model.special_token_rows.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1.0)

    terms = model(batch_of([[STORY]], 30), torch.Generator().manual_seed(0))
    (terms["next_token"].sum + terms["denoising"].sum).backward()
    optimizer.step()

    assert {row.group: row.num_trainable for row in rows}["special_token_rows"] == 2 * 4 * 32
    table = model.language_model.get_input_embeddings().weight.detach()
    moved = (model.special_token_rows.embedding_rows != table[model.special_token_rows.ids]).any(1)
    assert moved.all()
    after = dict(model.named_parameters())
    assert all(torch.equal(values(after[name]), value) for name, value in before.items())


def test_a_kind_that_is_unknown_and_a_part_without_linear_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantize is 'int3'; choose one of int8, float8, nf4"):
        quantize_linears(llama(), "int3")
    with pytest.raises(ConfigError, match="Embedding holds no linear layers to be quantised to int8"):
        quantize_linears(nn.Embedding(3, 4), "int8")


@KINDS
def test_a_package_that_is_missing_is_one_line_with_the_cure(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"pip install 'dreamllm\[quantize\]'") as caught:
        quantize_linears(llama(), kind)

    assert "\n" not in str(caught.value)
