import pytest
import torch
from tests.fusion.tiny_parents import SIZES
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from dreamllm.models.cross_block import CrossAttention, CrossBlock


def block(**change):
    options = {
        "num_heads": 4,
        "head_dim": 8,
        "ffn_size": 48,
        "activation": "silu",
        "norm_eps": 1e-6,
        "gating": "random",
    }
    return CrossBlock(32, 32, **{**options, **change})


@torch.no_grad()
def test_a_block_that_reads_its_own_states_is_a_stock_decoder_layer():
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_key_value_heads": 4})
    config._attn_implementation = "sdpa"
    stock, ours = LlamaDecoderLayer(config, 0), block()
    for name, layer in (("attention", stock.self_attn), ("ffn", stock.mlp)):
        getattr(ours, name).load_state_dict(layer.state_dict())
    states, positions = (
        torch.randn(2, 7, 32),
        torch.tensor([[0, 1, 2, 3, 4, 5, 6], [3, 4, 9, 10, 11, 20, 21]]),
    )
    rotation = LlamaRotaryEmbedding(config)(states, positions)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)

    found = ours(states, ours.keys_values(states, rotation), mask, rotation)

    expected = stock(states, attention_mask=mask, position_embeddings=rotation)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_query_that_may_see_nothing_learns_nothing():
    torch.manual_seed(0)
    attention = CrossAttention(32, 32, num_heads=4, head_dim=8, out_start="normal")
    states = torch.randn(1, 3, 32)
    rotation = torch.ones(1, 3, 8), torch.zeros(1, 3, 8)
    mask = torch.tensor([[[[False, False, False], [True, False, False], [True, True, False]]]])

    answer = attention(states, *attention.keys_values(states, rotation), mask, rotation)

    assert not answer[0, 0].any()
    assert_close(answer[0, 1], attention.o_proj(attention.v_proj(states[0, 0])))


@torch.no_grad()
def test_gates_open_by_their_tangent():
    torch.manual_seed(0)
    gated, plain = block(gating="tanh", ffn_size=0), block(ffn_size=0)
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if k != "gates"})
    states, rotation = torch.randn(1, 3, 32), (torch.ones(1, 3, 8), torch.zeros(1, 3, 8))
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    gated.gates.fill_(0.5)

    change = gated(states, gated.keys_values(states, rotation), mask, rotation) - states

    full = plain(states, plain.keys_values(states, rotation), mask, rotation) - states
    assert_close(change, 0.46211716 * full)  # tanh(1/2)


@pytest.mark.parametrize(("gating", "count"), [("zero", 0), ("random", 0), ("tanh", 2)])
def test_only_tanh_gating_has_gates(gating, count):
    gates = block(gating=gating).gates

    assert (0 if gates is None else gates.numel()) == count
