import pytest
import torch
from tests.fusion.tiny_parents import OTHERS, TOKENS, WORDS, D, logits_of, mixed_ids, parent, parents
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dreamllm.errors import ConfigError
from dreamllm.fusion.config import FusionConfig, WidthOptions
from dreamllm.fusion.fuse import fuse
from dreamllm.fusion.width import block_matrix
from dreamllm.models.jam_width import GroupedRMSNorm, JamWidthForCausalLM

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def width(text, image, **options):
    return fuse(FusionConfig(method="width", width=WidthOptions(**options)), text, image, tokens=TOKENS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_zero_blocks_and_grouped_norms_the_logits_are_the_mean_of_both_parents(family, tied):
    text, image = parents(family, tie_word_embeddings=tied)

    fused = width(text, image, off_diagonal="zero", norm="grouped", logits="half")

    mean = (logits_of(text, mixed_ids()) + logits_of(image, mixed_ids())) / 2
    assert isinstance(fused, JamWidthForCausalLM)
    assert_close(logits_of(fused, mixed_ids()), mean, atol=1e-5, rtol=0)


def test_the_sum_of_logits_is_twice_their_mean():
    text, image = parents()

    fused = width(text, image, off_diagonal="zero", norm="grouped", logits="sum")

    both = logits_of(text, mixed_ids()) + logits_of(image, mixed_ids())
    assert_close(logits_of(fused, mixed_ids()), both, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_by_modality_come_each_from_its_own_half(tied):
    text, image = parents(tie_word_embeddings=tied)

    fused = width(text, image, off_diagonal="zero", norm="grouped", logits="by_modality")

    logits = logits_of(fused, mixed_ids())
    assert_close(logits[..., WORDS], logits_of(text, mixed_ids())[..., WORDS], atol=1e-5, rtol=0)
    assert_close(logits[..., OTHERS], logits_of(image, mixed_ids())[..., OTHERS], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["joint", "grouped"])
@pytest.mark.parametrize("off_diagonal", ["copy_row", "copy_col", "avg"])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_at_half_scale_of_a_model_and_itself_are_that_model(family, off_diagonal, norm):
    model = parent(1, family)

    fused = width(model, parent(1, family), off_diagonal=off_diagonal, scale=0.5, norm=norm)

    assert_close(logits_of(fused, mixed_ids()), logits_of(model, mixed_ids()), atol=1e-5, rtol=0)


def test_zero_blocks_of_a_model_and_itself_are_that_model_under_a_joint_norm_too():
    model = parent(1)

    fused = width(model, parent(1), off_diagonal="zero")

    assert_close(logits_of(fused, mixed_ids()), logits_of(model, mixed_ids()), atol=1e-5, rtol=0)


def test_a_joint_norm_gives_a_stock_model_of_twice_the_width_with_heads_of_the_same_size():
    text, image = parents()

    fused = width(text, image)

    assert type(fused) is type(text)
    config = fused.config
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (2 * D, 96, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert fused.lm_head.weight is fused.model.embed_tokens.weight
    assert text.config.hidden_size == D


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # A = [[1, 2]], B = [[3, 5]]
        ({"off_diagonal": "copy_row"}, [[1, 2, 1, 2], [3, 5, 3, 5]]),
        ({"off_diagonal": "copy_col"}, [[1, 2, 3, 5], [1, 2, 3, 5]]),
        ({"off_diagonal": "avg"}, [[1, 2, 2, 3.5], [2, 3.5, 3, 5]]),
        ({"off_diagonal": "zero"}, [[1, 2, 0, 0], [0, 0, 3, 5]]),
        ({"off_diagonal": "copy_row", "off_diagonal_scale": 0.5}, [[1, 2, 0.5, 1], [1.5, 2.5, 3, 5]]),
        ({"off_diagonal": "copy_col", "scale": 2.0}, [[2, 4, 6, 10], [2, 4, 6, 10]]),
    ],
)
def test_blocks_are_filled_as_the_option_says(options, expected):
    matrix = block_matrix(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]]), WidthOptions(**options))

    assert matrix.tolist() == expected


def test_noise_has_the_spread_that_was_asked_for():
    torch.manual_seed(0)

    matrix = block_matrix(
        torch.zeros(200, 200), torch.zeros(200, 200), WidthOptions(off_diagonal="noise", noise_std=0.006)
    )

    assert matrix[:200, :200].abs().max() == 0
    assert abs(float(matrix[:200, 200:].std()) / 0.006 - 1) < 0.02  # 40,000 values: standard error 0.35 %


def test_a_joint_norm_scales_each_half_by_its_share_of_the_common_size():
    torch.manual_seed(0)
    text, image = torch.randn(3, D), 4 * torch.randn(3, D)
    joint, own = LlamaRMSNorm(2 * D, eps=0.0), LlamaRMSNorm(D, eps=0.0)

    half = joint(torch.cat([text, image], dim=1))[:, :D]

    sizes = text.square().mean(1).sqrt(), image.square().mean(1).sqrt()
    factor = sizes[0] / ((sizes[0].square() + sizes[1].square()) / 2).sqrt()
    assert_close(half, factor[:, None] * own(text))


def test_a_grouped_norm_is_the_stock_norm_on_every_group():
    torch.manual_seed(0)
    text, image = torch.randn(3, D), 4 * torch.randn(3, D)
    own = LlamaRMSNorm(D, eps=1e-6)

    both = GroupedRMSNorm(2 * D, num_groups=2, eps=1e-6)(torch.cat([text, image], dim=1))

    assert_close(both, torch.cat([own(text), own(image)], dim=1))


def test_norms_of_queries_that_differ_are_refused_as_all_heads_share_one():
    text, image = parents("qwen3")
    with torch.no_grad():
        image.model.layers[2].self_attn.q_norm.weight[0] = 2.0

    with pytest.raises(
        ConfigError, match=r"QK-norm its own and its own .*these parents allow: uniform, cross"
    ):
        width(text, image)
