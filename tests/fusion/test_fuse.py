"""What holds for every fusion."""

import pytest
import torch
from tests.fusion.tiny_parents import TOKENS, logits_of, mixed_ids, num_parameters, parents
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache

from dreamllm.fusion.cross import CrossOptions
from dreamllm.fusion.fuse import FusionConfig, fuse
from dreamllm.fusion.sizes import num_fused
from dreamllm.fusion.uniform import UniformOptions
from dreamllm.fusion.width import WidthOptions
from dreamllm.generate.cache import CachedReader, PrefixReader
from dreamllm.models.language_model import check_language_model, probe

CONFIGS = {
    "uniform": FusionConfig(method="uniform"),
    "uniform by modality": FusionConfig(
        method="uniform", uniform=UniformOptions(embedding_rows="by_modality")
    ),
    "width": FusionConfig(method="width"),
    "width zero grouped": FusionConfig(
        method="width", width=WidthOptions(off_diagonal="zero", norm="grouped")
    ),
    "width by modality": FusionConfig(
        method="width", width=WidthOptions(off_diagonal="noise", norm="grouped", logits="by_modality")
    ),
    "cross": FusionConfig(method="cross"),
    "cross faithful": FusionConfig(
        method="cross", cross=CrossOptions(embeddings="shared", head="half", after_last=True)
    ),
    "cross every layer": FusionConfig(
        method="cross", cross=CrossOptions(every=1, content="attention", heads=2, gating="tanh")
    ),
    "cross mapped": FusionConfig(
        method="cross", cross=CrossOptions(embeddings="mapped", ffn_size=20, gating="random")
    ),
    "jam-x": FusionConfig(method="cross", cross=CrossOptions(text_skips_images=True)),
}
every_fusion = pytest.mark.parametrize("name", CONFIGS)


def fused(name, family="llama", **change):
    torch.manual_seed(0)
    return fuse(CONFIGS[name], *parents(family, **change), tokens=TOKENS)


@every_fusion
def test_what_comes_later_changes_nothing_before(name):
    model, ids = fused(name), mixed_ids()
    changed = torch.cat([ids[:, :6], torch.full((2, 10), 30)], dim=1)

    before, after = logits_of(model, ids), logits_of(model, changed)

    assert_close(after[:, :6], before[:, :6], atol=1e-5, rtol=0)
    assert (after[:, 6:] - before[:, 6:]).abs().max() > 0.1


@every_fusion
def test_a_cache_changes_no_logit(name):
    model, ids = fused(name), mixed_ids()
    cache, pieces = DynamicCache(), []

    with torch.no_grad():
        for chunk in ids.split((3, 1, 1, 3, 1, 5, 2), dim=1):
            pieces.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits)

    assert_close(torch.cat(pieces, dim=1), logits_of(model, ids), atol=2e-5, rtol=1e-5)


@every_fusion
def test_rows_of_different_pace_get_the_states_of_their_whole_prefix(name):
    model = fused(name)
    with torch.no_grad():
        first, second = model.get_input_embeddings()(mixed_ids())
    cached, prefix = CachedReader(model, num_rows=2, max_length=16), PrefixReader(model)

    with torch.no_grad():
        for chunks in (
            {0: first[:7], 1: second[:2]},
            {1: second[2:3]},
            {0: first[7:8], 1: second[3:12]},
            {0: first[8:]},
        ):
            expected = prefix.read(chunks)
            for row, states in cached.read(chunks).items():
                assert_close(states, expected[row], atol=2e-5, rtol=1e-5)


@every_fusion
def test_every_parameter_gets_a_gradient_at_the_latest_in_the_second_step(name):
    """What stands behind a layer that begins at zero waits for the first step."""
    model, ids = fused(name), mixed_ids()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    for _ in range(2):
        optimizer.zero_grad()
        logits = model(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()

    without = [
        key for key, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@every_fusion
def test_the_number_of_parameters_is_what_the_formula_says(name, family, tied):
    text, image = parents(family, tie_word_embeddings=tied)

    model = fuse(CONFIGS[name], text, image, tokens=TOKENS)

    assert num_parameters(model) == num_fused(CONFIGS[name], text.config, image.config, tokens=TOKENS)


@every_fusion
def test_a_saved_fusion_is_the_same_model(name, tmp_path):
    model = fused(name)
    model.save_pretrained(tmp_path)

    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is type(model)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits_of(loaded, mixed_ids()), logits_of(model, mixed_ids()))
    assert num_parameters(loaded) == num_parameters(model)
    assert not list(tmp_path.glob("*.bin"))


@every_fusion
def test_a_fusion_is_run_like_any_language_model(name):
    model = fused(name)

    check_language_model(model)
    probe(model, num_positions=30)


@every_fusion
def test_parents_in_bfloat16_give_a_fusion_in_bfloat16_with_rotary_positions_in_float32(name):
    text, image = (model.bfloat16() for model in parents())
    text.model.rotary_emb.inv_freq = text.model.rotary_emb.inv_freq.float()

    model = fuse(CONFIGS[name], text, image, tokens=TOKENS)

    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for key, buffer in model.named_buffers() if "inv_freq" in key} == {torch.float32}
    assert logits_of(model, mixed_ids()).isfinite().all()
