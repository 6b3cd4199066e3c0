"""What DreamLLM asks of a language model, against what the stock model does on its own."""

import pytest
import torch
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama
from tests.models.tiny_language_models import FAMILIES, WINDOW
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.generate.cache import CachedReader
from dreamllm.models.language_model import check_language_model, probe, run_decoder
from dreamllm.models.special_token_rows import SpecialTokenRows

EACH = pytest.mark.parametrize("family", FAMILIES)
LENGTH = 20


def causal(length):
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


@EACH
def test_states_equal_the_stock_model_beyond_its_window(family):
    model = FAMILIES[family]()
    model.set_attn_implementation("sdpa")
    ids = torch.randint(0, 40, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    stock = model(input_ids=ids, use_cache=False).logits

    states = run_decoder(model, model.get_input_embeddings()(ids), causal(LENGTH), torch.arange(LENGTH)[None])

    assert_close(model.get_output_embeddings()(states), stock, atol=1e-5, rtol=1e-4)
    probe(model)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3"])
def test_a_window_hides_what_lies_before_it(family):
    types = {} if family == "mistral" else {"layer_types": ["sliding_attention"]}
    model = FAMILIES[family](num_hidden_layers=1, **types)
    model.set_attn_implementation("sdpa")
    embeds = torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(0))
    other = embeds.clone()
    other[:, 4] += 1.0

    first, second = (
        run_decoder(model, each, causal(LENGTH), torch.arange(LENGTH)[None])[0] for each in (embeds, other)
    )

    changed = (first - second).abs().amax(dim=1) > 1e-5
    assert changed.nonzero().flatten().tolist() == list(range(4, 4 + WINDOW))


@EACH
def test_packing_and_cache_change_no_state(family):
    model = dreamllm(FAMILIES[family]())
    words = [1, 20, 21, 22, 23, 24, 25, 26, 2]
    apart = model.hidden_states(batch_of([[STORY]], 32))
    packed = model.hidden_states(batch_of([[words, STORY]], 48))[0]
    embeds = model.embed(batch_of([[STORY]], len(STORY)))[0]
    reader = CachedReader(model.language_model, num_rows=2, max_length=64)

    with torch.no_grad():
        pieces = [reader.read({1: chunk})[1] for chunk in embeds.split([9, 1, 1, len(STORY) - 11])]

    assert_close(packed[len(words) : len(words) + len(STORY)], apart[0, : len(STORY)], atol=1e-4, rtol=0)
    assert_close(torch.cat(pieces), apart[0, : len(STORY)], atol=1e-4, rtol=0)


@EACH
def test_rows_that_train_alone_give_what_the_tables_give(family):
    model = FAMILIES[family]()
    ids = torch.tensor([[1, *BRACKETS, 5]])
    before = model(input_ids=ids, use_cache=False).logits

    rows = SpecialTokenRows(model, BRACKETS)
    through = model(input_ids=ids, use_cache=False).logits
    rows.embedding_rows.data.add_(0.1)
    if rows.head_rows is not None:
        rows.head_rows.data.add_(0.1)
    changed = model(input_ids=ids, use_cache=False).logits
    rows.detach()

    assert_close(through, before)
    assert (changed - before).abs().max() > 1e-3
    assert_close(model(input_ids=ids, use_cache=False).logits, changed)


def test_models_that_compute_something_else_are_refused():
    capped, linear, scaled = llama(), llama(), llama()
    capped.config.final_logit_softcapping = 30.0
    linear.config.layer_types = ["linear_attention", "full_attention"]
    scaled.lm_head.register_forward_hook(lambda layer, inputs, output: output)
    scaled.model.embed_tokens.register_forward_hook(lambda layer, inputs, output: output + torch.rand(()))

    with pytest.raises(ConfigError, match="final_logit_softcapping=30"):
        check_language_model(capped)
    with pytest.raises(ConfigError, match="layers of type linear_attention"):
        check_language_model(linear)
    with pytest.raises(ConfigError, match="gives other logits"):
        probe(scaled)
