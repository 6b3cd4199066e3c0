from itertools import pairwise

import pytest
import torch
from tests.fusion.tiny_parents import (
    OTHERS,
    SPECIALS,
    TOKENS,
    WORDS,
    D,
    logits_of,
    mixed_ids,
    parent,
    parents,
)
from torch.testing import assert_close
from transformers import DynamicCache

from dreamllm.errors import ConfigError
from dreamllm.fusion.config import CrossOptions, FusionConfig
from dreamllm.fusion.cross import regression
from dreamllm.fusion.fuse import fuse

CUTS = (0, 3, 4, 5, 8, 9, 14, 16)


def cross(text, image, **options):
    return fuse(FusionConfig(method="cross", cross=CrossOptions(**options)), text, image, tokens=TOKENS)


@torch.no_grad()
def cached_logits(model, ids):
    """Logits of a pass in pieces, over a stock cache."""
    cache = DynamicCache()
    return torch.cat(
        [
            model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True).logits
            for start, end in pairwise(CUTS)
        ],
        dim=1,
    )


@pytest.mark.parametrize("logits", [logits_of, cached_logits])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_new_model_says_what_its_parents_say(family, tied, logits):
    text, image = parents(family, tie_word_embeddings=tied)

    fused = logits(cross(text, image), mixed_ids())

    assert_close(fused[..., WORDS], logits_of(text, mixed_ids())[..., WORDS], atol=1e-5, rtol=0)
    assert_close(fused[..., OTHERS], logits_of(image, mixed_ids())[..., OTHERS], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"gating": "tanh"}, {"every": 0}, {"every": 1, "after_last": True}])
def test_gates_at_zero_and_no_meetings_preserve_the_parents_too(options):
    text, image = parents()

    fused = logits_of(cross(text, image, **options), mixed_ids())

    assert_close(fused[..., WORDS], logits_of(text, mixed_ids())[..., WORDS], atol=1e-5, rtol=0)
    assert_close(fused[..., OTHERS], logits_of(image, mixed_ids())[..., OTHERS], atol=1e-5, rtol=0)


@pytest.mark.parametrize("logits", [logits_of, cached_logits])
@pytest.mark.parametrize("tied", [True, False])
def test_jam_x_says_of_words_what_the_text_parent_says_without_the_pictures(tied, logits):
    """Codes and special tokens have the image parent's logits everywhere.

    At positions that are no codes, words have the logits of the text parent that reads these positions alone,
    each numbered as in the document; at codes, where the text tower's state is zero, their logits are zero.
    """
    text, image = parents(tie_word_embeddings=tied)
    ids = mixed_ids()

    fused = logits(cross(text, image, text_skips_images=True), ids)

    assert_close(fused[..., OTHERS], logits_of(image, ids)[..., OTHERS], atol=1e-5, rtol=0)
    for row in range(2):
        places = (ids[row] < TOKENS.first_code).nonzero()[:, 0]
        causal = torch.ones(len(places), len(places), dtype=torch.bool).tril()[None, None]
        alone = logits_of(text, ids[row, places][None], position_ids=places[None], attention_mask=causal)
        assert_close(fused[row, places][:, WORDS], alone[0][:, WORDS], atol=1e-5, rtol=0)
    assert fused[ids >= TOKENS.first_code][:, WORDS].abs().max() == 0


def test_parents_of_other_width_heads_and_family_can_be_joined():
    text = parent(1)
    image = parent(2, "qwen3", hidden_size=48, num_attention_heads=6, intermediate_size=40, head_dim=16)

    fused = logits_of(cross(text, image), mixed_ids())

    assert_close(fused[..., WORDS], logits_of(text, mixed_ids())[..., WORDS], atol=1e-5, rtol=0)
    assert_close(fused[..., OTHERS], logits_of(image, mixed_ids())[..., OTHERS], atol=1e-5, rtol=0)


def test_random_gating_disturbs_the_parents():
    text, image = parents()

    fused = logits_of(cross(text, image, gating="random"), mixed_ids())

    assert (fused - logits_of(cross(text, image), mixed_ids())).abs().max() > 0.1


@pytest.mark.parametrize("text_skips_images", [False, True])
def test_after_one_step_the_towers_do_exchange_information(text_skips_images):
    text, image = parents()
    fused = cross(text, image, text_skips_images=text_skips_images)

    def image_logits_move():
        before = logits_of(fused, mixed_ids())[..., OTHERS]
        table = fused.model.embed_tokens.text.weight  # of the text tower alone
        with torch.no_grad():
            old = table.clone()
            table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
        after = logits_of(fused, mixed_ids())[..., OTHERS]
        with torch.no_grad():
            table.copy_(old)
        return float((after - before).abs().max())

    start = image_logits_move()
    optimizer = torch.optim.SGD(fused.model.parameters(), lr=0.1)  # the head's projections stay as they are
    logits = fused(input_ids=mixed_ids()).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), mixed_ids()[:, 1:].flatten()).backward()
    optimizer.step()

    assert start == 0
    assert image_logits_move() > 1e-3


@pytest.mark.parametrize("head", ["half", "split"])
def test_a_shared_table_has_words_of_the_text_parent_and_all_else_of_the_image_parent(head):
    text, image = parents()
    fused = cross(text, image, embeddings="shared", head=head)
    ids = torch.arange(40)[None]

    embeds = fused.get_input_embeddings()(ids)[0]

    table = torch.where(
        torch.isin(ids[0], torch.tensor(WORDS))[:, None],
        *(model.model.embed_tokens.weight for model in (text, image)),
    )
    assert embeds.shape == (40, 2 * D + 1)
    assert torch.equal(embeds[:, :D], table)
    assert torch.equal(embeds[:, D : 2 * D], table)
    assert torch.equal(embeds[:, -1], torch.ones(40))
    states = torch.randn(3, 2 * D)
    text_half, image_half = states.split(D, dim=1)
    if head == "half":
        expected = (text_half + image_half) / 2 @ table.T
    else:
        expected = image_half @ table.T
        expected[:, WORDS] = (text_half @ table.T)[:, WORDS]
    assert_close(fused.get_output_embeddings()(states), expected)


def test_special_rows_of_a_shared_table_may_be_the_text_parents():
    text, image = parents()

    fused = cross(text, image, embeddings="shared", special_rows="text")

    assert torch.equal(fused.model.embed_tokens.text.weight, text.model.embed_tokens.weight[:24])


def test_a_mapped_table_gives_the_image_tower_its_own_words_where_a_matrix_can():
    text, image = parents()
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        text.model.embed_tokens.weight.normal_()
        image.model.embed_tokens.weight[: TOKENS.first_code] = (
            text.model.embed_tokens.weight[: TOKENS.first_code] @ rotation.T
        )

    fused = cross(text, image, embeddings="mapped", ridge=1e-9)

    embeds = fused.get_input_embeddings()(torch.arange(40)[None])[0]
    assert torch.equal(embeds[WORDS, :D], text.model.embed_tokens.weight[WORDS])
    assert_close(embeds[WORDS, D : 2 * D], image.model.embed_tokens.weight[WORDS], atol=1e-4, rtol=0)
    assert torch.equal(embeds[OTHERS, D : 2 * D], image.model.embed_tokens.weight[OTHERS])
    assert len(WORDS) < D  # so that the ridge alone decides the rest of the matrix


def test_ridge_regression_shrinks_a_slope_as_its_formula_says():
    inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])

    matrix = regression(inputs, targets, ridge=0.5)

    assert_close(matrix, torch.tensor([[10 / (5 + 0.5 * 5)]], dtype=torch.float64))  # x.y / (x.x + 0.5 x.x)


def test_jam_x_flags_every_id_that_is_no_code():
    fused = cross(*parents(), text_skips_images=True)

    flags = fused.get_input_embeddings()(torch.arange(40)[None])[0, :, -1]

    assert flags.tolist() == [1.0] * 24 + [0.0] * 16
    assert all(flags[SPECIALS] == 1)


def test_parents_of_another_depth_are_refused():
    with pytest.raises(ConfigError, match=r"fused by 'cross': layers 4 and 3;.*these parents allow: none"):
        cross(parent(1), parent(2, num_hidden_layers=3))


def test_a_shared_table_for_parents_of_other_width_is_refused():
    with pytest.raises(ConfigError, match="32 and 48 wide, which 'shared' embeddings"):
        cross(parent(1), parent(2, hidden_size=48, num_attention_heads=6), embeddings="shared")
