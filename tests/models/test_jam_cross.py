import copy

import pytest
import torch
from tests.fusion.tiny_parents import SIZES, SPECIALS, VOCAB, D, logits_of, mixed_ids, num_parameters
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen3Config

from dreamllm.errors import ConfigError
from dreamllm.generate.cache import CachedReader, PrefixReader
from dreamllm.models.jam_cross import JamCrossConfig, JamCrossForCausalLM, parameter_roles
from dreamllm.models.language_model import check_language_model, num_cache_layers, probe, run_decoder

FIRST_CODE = 24
ARMS = {
    "cross": {},
    "every layer, attention alone, half the heads": {
        "cross_every": 1,
        "cross_content": "attention",
        "cross_heads": 2,
    },
    "after the last, behind gates": {"after_last": True, "gating": "tanh", "cross_ffn_size": 24},
    "shared, half": {"embeddings": "shared", "head": "half"},
    "mapped, random, untied": {"embeddings": "mapped", "head": "random", "tie_word_embeddings": False},
    "jam-x": {"text_skips_images": True},
    "jam-x, every layer, untied": {
        "text_skips_images": True,
        "cross_every": 1,
        "tie_word_embeddings": False,
    },
    "jam-x, towers of other width": {
        "text_skips_images": True,
        "image_config": Qwen3Config(**{**SIZES, "hidden_size": 48, "num_attention_heads": 6}),
    },
}
every_arm = pytest.mark.parametrize("arm", ARMS)


def cross_config(**change):
    values = {
        "text_config": LlamaConfig(**SIZES),
        "image_config": LlamaConfig(**SIZES),
        "first_code": FIRST_CODE,
        "special_ids": SPECIALS,
        "gating": "random",
        "tie_word_embeddings": True,
    }
    return JamCrossConfig(**copy.deepcopy({**values, **change}))


def two_towers(arm="cross", **change):
    """A model whose gates are open."""
    torch.manual_seed(0)
    model = JamCrossForCausalLM(cross_config(**{**ARMS[arm], **change}))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("gates"):
                tensor.normal_()
    return model.eval()


def embeds_of(model, ids):
    with torch.no_grad():
        return model.get_input_embeddings()(ids)


@every_arm
def test_a_cache_changes_no_logit(arm):
    model, ids = two_towers(arm), mixed_ids()
    cache, pieces = DynamicCache(), []

    with torch.no_grad():
        for chunk in ids.split((3, 1, 1, 3, 1, 5, 2), dim=1):
            pieces.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits)

    assert_close(torch.cat(pieces, dim=1), logits_of(model, ids), atol=2e-5, rtol=1e-5)
    assert len(cache.layers) == num_cache_layers(model)
    assert {layer.get_seq_length() for layer in cache.layers} == {16}


@every_arm
def test_rows_of_different_pace_get_the_states_of_a_pass_over_their_whole_prefix(arm):
    model, ids = two_towers(arm), mixed_ids()
    texts = [*embeds_of(model, ids), embeds_of(model, ids.flip(1))[0]]
    cached = CachedReader(model, num_rows=4, max_length=20)
    prefix = PrefixReader(model)
    cuts = [(3, 8, 1), (1, 0, 1), (0, 1, 5), (2, 0, 1), (1, 1, 0), (9, 0, 8), (0, 6, 0)]

    done = [0, 0, 0]
    with torch.no_grad():
        for sizes in cuts:
            chunks = {r + r // 2: texts[r][done[r] : done[r] + n] for r, n in enumerate(sizes) if n}
            expected = prefix.read(chunks)
            for row, states in cached.read(chunks).items():
                assert_close(states, expected[row], atol=2e-5, rtol=1e-5)
            done = [d + n for d, n in zip(done, sizes, strict=True)]

    assert done == [16, 16, 16]


@pytest.mark.parametrize("arm", ["cross", "jam-x"])
def test_a_released_row_does_not_remember_the_document_before(arm):
    model, ids = two_towers(arm), mixed_ids()
    old, new = embeds_of(model, ids)
    reader = CachedReader(model, num_rows=1, max_length=20)

    with torch.no_grad():
        reader.read({0: old})
        reader.release(0)
        first = reader.read({0: new[:2]})[0]
        codes = torch.cat([reader.read({0: new[place : place + 1]})[0] for place in range(2, 6)])
        rest = reader.read({0: new[6:]})[0]

        expected = model.model(input_ids=ids[1:]).last_hidden_state[0]
    assert_close(torch.cat([first, codes, rest]), expected, atol=2e-5, rtol=1e-5)


@every_arm
def test_what_comes_later_changes_nothing_before(arm):
    model, ids = two_towers(arm), mixed_ids()
    cut = 6
    for other in (torch.full((2, 16 - cut), 30), torch.full((2, 16 - cut), 9)):
        changed = torch.cat([ids[:, :cut], other], dim=1)

        before, after = logits_of(model, ids), logits_of(model, changed)

        assert_close(after[:, :cut], before[:, :cut], atol=1e-5, rtol=0)
        assert (after[:, cut:] - before[:, cut:]).abs().max() > 0.1


@every_arm
def test_documents_packed_into_one_row_have_the_logits_they_have_alone(arm):
    model, ids = two_towers(arm), mixed_ids()
    packed = torch.cat([ids.flatten(), torch.zeros(3, dtype=torch.long)])[None]
    document = torch.tensor([1] * 16 + [2] * 16 + [0] * 3)
    same = (document[:, None] == document) & (document > 0)[:, None]
    mask = (same & torch.ones(35, 35, dtype=torch.bool).tril()) | torch.eye(35, dtype=torch.bool)
    positions = torch.cat([torch.arange(16), torch.arange(16), torch.zeros(3, dtype=torch.long)])[None]

    with torch.no_grad():
        states = run_decoder(model, embeds_of(model, packed), mask[None, None], positions)
        logits = model.get_output_embeddings()(states)[0, :32].unflatten(0, (2, 16))

    assert_close(logits, logits_of(model, ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("arm", ["cross", "jam-x"])
def test_a_row_of_codes_alone_is_finite_with_and_without_a_cache(arm):
    model = two_towers(arm)
    ids = torch.tensor([[30, 31, 24, 25], [1, 30, 5, 25]])

    logits = logits_of(model, ids)
    with torch.no_grad():
        cached = model(input_ids=ids, use_cache=True).logits

    assert logits.isfinite().all()
    assert_close(cached, logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("arm", ["cross", "jam-x"])
def test_both_directions_of_a_meeting_read_what_was_before_it(arm, use_cache):
    """With one meeting, what one tower learns in it never reaches the other."""
    model, ids = two_towers(arm, cross_every=3), mixed_ids()

    def states():
        with torch.no_grad():
            return model.model(input_ids=ids, use_cache=use_cache).last_hidden_state.split(D, dim=-1)

    before = states()
    with torch.no_grad():
        model.model.text_reads_image[0].attention.v_proj.weight.mul_(2)
    text_changed = states()
    with torch.no_grad():
        model.model.image_reads_text[0].attention.v_proj.weight.mul_(2)
    both_changed = states()

    assert torch.equal(text_changed[1], before[1])
    assert (text_changed[0] - before[0]).abs().max() > 0.01
    assert torch.equal(both_changed[0], text_changed[0])
    assert (both_changed[1] - before[1]).abs().max() > 0.01


def test_in_jam_x_the_text_tower_does_not_run_while_every_row_draws():
    model = two_towers("jam-x")
    calls = []
    model.model.text_tower.layers[0].register_forward_hook(lambda *_: calls.append(1))
    cache = DynamicCache()

    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 9, 5], [1, 8, 5]]), past_key_values=cache, use_cache=True)
        assert len(calls) == 1
        model(input_ids=torch.tensor([[30], [31]]), past_key_values=cache, use_cache=True)
        assert len(calls) == 1
        model(input_ids=torch.tensor([[30], [5]]), past_key_values=cache, use_cache=True)

    assert len(calls) == 2


def test_in_jam_x_the_text_tower_computes_no_position_of_a_picture():
    model = two_towers("jam-x")
    shapes = []
    model.model.text_tower.layers[0].register_forward_hook(lambda _, args, out: shapes.append(out.shape))

    logits_of(model, mixed_ids())

    assert shapes == [
        (2, 12, D)
    ]  # the rows of 16 have 6 and 4 codes, and the longer of 10 and 12 words counts


def test_in_jam_x_codes_reach_words_only_through_meetings():
    """With all meetings shut, no code changes a logit of a word where a word stands."""
    model = two_towers("jam-x", gating="zero")
    ids = mixed_ids()
    changed = torch.where(ids >= FIRST_CODE, torch.tensor(29), ids)

    words = (ids < FIRST_CODE)[..., None] & (torch.arange(VOCAB) < FIRST_CODE)
    words[..., SPECIALS] = False
    assert torch.equal(logits_of(model, ids)[words], logits_of(model, changed)[words])


@every_arm
def test_a_saved_model_is_the_same_model_and_holds_no_tensor_twice(arm, tmp_path):
    model = two_towers(arm)
    model.save_pretrained(tmp_path)

    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is JamCrossForCausalLM
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.cross_layers == model.config.cross_layers
    assert torch.equal(logits_of(loaded, mixed_ids()), logits_of(model, mixed_ids()))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * num_parameters(model) + 20_000


@every_arm
def test_every_parameter_gets_a_gradient_from_a_row_of_words_and_codes(arm):
    model, ids = two_towers(arm), mixed_ids()

    logits = model(input_ids=ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    without = [n for n, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert without == []


@pytest.mark.parametrize("arm", ["cross", "jam-x"])
def test_checkpointing_activations_changes_no_gradient(arm):
    model, ids = two_towers(arm).train(), mixed_ids()

    def gradients():
        model.zero_grad()
        model(input_ids=ids).logits.square().mean().backward()
        return [tensor.grad.clone() for tensor in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()

    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))


@every_arm
def test_a_two_tower_model_is_run_like_any_language_model(arm):
    model = two_towers(arm)
    model.set_attn_implementation("sdpa")

    check_language_model(model)
    probe(model, num_positions=30)

    assert model.config.get_text_config().vocab_size == VOCAB


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cross_every": 1}, (1, 2, 3)),
        ({"cross_every": 2}, (2,)),
        ({"cross_every": 3}, (3,)),
        ({"cross_every": 2, "after_last": True}, (2, 4)),
        ({"cross_every": 0}, ()),
    ],
)
def test_towers_meet_after_every_nth_layer_before_the_last(options, expected):
    config = cross_config(**options)

    assert config.cross_layers == expected
    assert config.num_cache_layers == 2 * (4 + len(expected))


def test_every_parameter_has_one_role_and_rows_belong_to_a_tower():
    model = two_towers("jam-x, every layer, untied")

    roles = parameter_roles(model)

    names = [name for name, _ in model.named_parameters()]
    assert sorted(name for owned in roles.values() for name in owned) == sorted(names)
    assert "model.embed_tokens.text.weight" in roles["text_tower"]
    assert {"model.embed_tokens.image.weight", "head.image_rows.weight"} <= set(roles["image_tower"])
    assert "head.text_projection.weight" in roles["cross"]
    assert len([name for name in roles["cross"] if "reads" in name]) == len(roles["cross"]) - 2


def test_new_weights_begin_as_the_gating_says():
    torch.manual_seed(0)
    model = JamCrossForCausalLM(cross_config(gating="zero", cross_init_std=0.006))
    block = model.model.text_reads_image[0]

    assert not block.attention.o_proj.weight.any()
    assert not block.ffn.down_proj.weight.any()
    for layer in (block.attention.q_proj, block.attention.k_proj, block.ffn.up_proj):
        assert 0.005 < layer.weight.std().item() < 0.007
        assert layer.weight.abs().max() <= 0.018  # three standard deviations
    assert torch.equal(model.head.text_projection.weight, torch.eye(2 * D)[:D])
    assert torch.equal(model.head.image_projection.weight, torch.eye(2 * D)[D:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_config": LlamaConfig(**{**SIZES, "num_hidden_layers": 3})}, "num_hidden_layers is 4 in the"),
        ({"image_config": LlamaConfig(**{**SIZES, "vocab_size": 41})}, "vocab_size is 40 in the text tower"),
        ({"first_code": 40}, "first_code is 40 and special"),
        ({"special_ids": [24]}, r"special tokens are \[24\]"),
        ({"cross_heads": 0}, "cross_heads 0"),
    ],
)
def test_towers_that_cannot_be_joined_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        JamCrossForCausalLM(cross_config(**change))


def test_a_pass_needs_ids_or_embeddings():
    with pytest.raises(ConfigError, match="input_ids or inputs_embeds, and not both"):
        two_towers()(input_ids=None)
