import pytest
import torch
from tests.fusion.tiny_parents import TOKENS, parent, parents
from transformers import GPT2Config, GPT2LMHeadModel

from dreamllm.errors import ConfigError
from dreamllm.fusion.compatibility import compatibility
from dreamllm.sequence.code_tokens import CodeTokens


def row(report, name):
    return next(row for row in report.rows if row.name == name)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_parents_of_one_shape_allow_everything(family):
    report = compatibility(*parents(family), tokens=TOKENS)

    assert report.allows == ("uniform", "width", "cross")
    assert {row.verdict for row in report.rows} == {"same"}


@pytest.mark.parametrize(
    ("change", "name", "allows"),
    [
        ({"num_hidden_layers": 3}, "layers", ()),
        ({"vocab_size": 44}, "vocabulary size", ()),
        ({"hidden_size": 64}, "width", ("cross",)),
        ({"num_key_value_heads": 4}, "key-value heads", ("cross",)),
        ({"head_dim": 16}, "head width", ("cross",)),
        ({"intermediate_size": 40}, "feed-forward width", ("cross",)),
        ({"rms_norm_eps": 1e-5}, "norm epsilon", ("cross",)),
        ({"hidden_act": "gelu"}, "activation", ("cross",)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rotary positions",
            ("cross",),
        ),
        ({"attention_bias": True}, "biases", ("cross",)),
        ({"tie_word_embeddings": False}, "tied embeddings", ("uniform", "width", "cross")),
        ({"max_position_embeddings": 64}, "context", ("uniform", "width", "cross")),
        ({"eos_token_id": 9}, "eos_token_id", ("uniform", "width", "cross")),
    ],
)
def test_a_difference_prevents_what_it_must_and_nothing_else(change, name, allows):
    report = compatibility(parent(1), parent(2, **change), tokens=TOKENS)

    assert report.allows == allows
    expected = "differs, bridged" if len(allows) == 3 else "differs, prevents"
    assert row(report, name).verdict == expected
    assert [each.name for each in report.rows if each.verdict != "same"] == [name]


def test_two_families_can_only_be_two_towers():
    report = compatibility(parent(1), parent(2, "qwen3"), tokens=TOKENS)

    assert report.allows == ("cross",)
    assert row(report, "class").text == "LlamaForCausalLM"
    assert row(report, "QK-norm").image == "present"


def test_a_family_that_is_not_known_is_refused():
    torch.manual_seed(0)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=4, n_head=4))

    with pytest.raises(ConfigError, match=r"cannot be fused by 'cross': class GPT2LMHeadModel and Llama"):
        compatibility(other, parent(2), tokens=TOKENS).check("cross")


def test_a_window_that_both_have_prevents_two_towers_alone():
    report = compatibility(*parents("mistral", sliding_window=8, max_position_embeddings=64), tokens=TOKENS)

    assert report.allows == ("uniform", "width")


def test_both_tables_need_rows_for_all_codes():
    more = CodeTokens(break_=5, mask=6, infill=7, first_code=24, num_codes=17, codes_per_picture=4)

    report = compatibility(*parents(), tokens=more)

    assert report.allows == ()
    assert row(report, "rows for codes 24 to 40").text == "40 rows"


def test_vocabularies_must_agree_token_by_token():
    vocab = {"a": 0, "b": 1, "c": 2}

    same = compatibility(*parents(), tokens=TOKENS, text_vocab=vocab, image_vocab=dict(vocab))
    other = compatibility(*parents(), tokens=TOKENS, text_vocab=vocab, image_vocab={"a": 0, "b": 2, "c": 1})

    assert same.allows == ("uniform", "width", "cross")
    assert other.allows == ()
    assert row(other, "vocabulary").note.startswith("2 tokens have other ids")


def test_every_reason_stands_in_one_line():
    report = compatibility(parent(1), parent(2, hidden_size=64, hidden_act="gelu"), tokens=TOKENS)

    with pytest.raises(
        ConfigError, match=r"width 32 and 64.*activation silu and gelu.*allow: cross"
    ) as error:
        report.check("width")

    assert "\n" not in str(error.value)
