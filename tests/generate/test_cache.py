import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dreamllm.generate.cache import CachedReader, PrefixReader

D = 32


def language_model(name: str):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": D,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,  # large, so that a wrong mask shows
    }
    if name == "llama":
        model = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation="sdpa")
    else:
        model = Qwen3ForCausalLM._from_config(Qwen3Config(**sizes), attn_implementation="sdpa")
    return model.eval()


def full_hidden(model, embeds):
    """The reference: the stock model over one row alone, no mask, no cache."""
    return model.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rows_of_different_pace_get_the_hidden_states_of_a_full_forward(name):
    model = language_model(name)
    texts = [torch.randn(length, D) for length in (23, 9, 14)]
    reader = CachedReader(model, num_rows=3, max_length=30)
    cuts = [  # the chunk sizes of every row in every step; 0 means that the row rests
        (5, 9, 1),
        (1, 0, 7),
        (0, 0, 1),
        (16, 0, 1),
        (1, 0, 4),
    ]

    pieces = [[], [], []]
    done = [0, 0, 0]
    with torch.no_grad():
        for sizes in cuts:
            chunks = {r: texts[r][done[r] : done[r] + n] for r, n in enumerate(sizes) if n}
            for row, hidden in reader.read(chunks).items():
                pieces[row].append(hidden)
                done[row] += hidden.shape[0]

        assert done == [23, 9, 14]
        for row in range(3):
            assert_close(torch.cat(pieces[row]), full_hidden(model, texts[row]), atol=1e-5, rtol=1e-5)


def test_a_released_row_does_not_remember_the_document_before():
    model = language_model("llama")
    reader = CachedReader(model, num_rows=2, max_length=20)
    old, new, neighbour = torch.randn(20, D), torch.randn(6, D), torch.randn(8, D)

    with torch.no_grad():
        reader.read({0: old, 1: neighbour[:3]})
        reader.release(0)
        hidden = reader.read({0: new, 1: neighbour[3:]})

        assert_close(hidden[0], full_hidden(model, new), atol=1e-5, rtol=1e-5)
        assert_close(hidden[1], full_hidden(model, neighbour)[3:], atol=1e-5, rtol=1e-5)


def test_reading_the_prefix_again_gives_the_hidden_states_of_a_full_forward():
    model = language_model("llama")
    reader = PrefixReader(model)
    first, second = torch.randn(11, D), torch.randn(4, D)

    with torch.no_grad():
        reader.read({0: first[:5]})
        hidden = reader.read({0: first[5:], 1: second})
        reader.release(0)
        again = reader.read({0: second})

        assert_close(hidden[0], full_hidden(model, first)[5:], atol=1e-5, rtol=1e-5)
        assert_close(hidden[1], full_hidden(model, second), atol=1e-5, rtol=1e-5)
        assert_close(again[0], full_hidden(model, second), atol=1e-5, rtol=1e-5)
