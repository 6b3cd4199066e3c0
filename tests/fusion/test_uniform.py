import pytest
import torch
from tests.fusion.tiny_parents import OTHERS, TOKENS, WORDS, logits_of, mixed_ids, parent, parents
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.fusion.config import FusionConfig, UniformOptions
from dreamllm.fusion.fuse import fuse


def uniform(text, image, **options):
    config = FusionConfig(method="uniform", uniform=UniformOptions(**options))
    return fuse(config, text, image, tokens=TOKENS)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_a_model_averaged_with_itself_is_that_model(family, alpha):
    model = parent(1, family)

    fused = uniform(model, parent(1, family), alpha=alpha)

    assert type(fused) is type(model)
    assert torch.equal(logits_of(fused, mixed_ids()), logits_of(model, mixed_ids()))


def test_every_tensor_is_a_mean_of_both_parents():
    text, image = parents(tie_word_embeddings=False)

    fused = uniform(text, image, alpha=0.25).state_dict()

    assert fused.keys() == text.state_dict().keys()
    for name, tensor in fused.items():
        assert_close(tensor, 0.25 * text.state_dict()[name] + 0.75 * image.state_dict()[name])


def test_rows_of_words_and_of_codes_may_keep_their_own_parent():
    text, image = parents(tie_word_embeddings=False)

    fused = uniform(text, image, embedding_rows="by_modality")

    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = fused.state_dict()[table]
        assert torch.equal(rows[WORDS], text.state_dict()[table][WORDS])
        assert torch.equal(rows[OTHERS], image.state_dict()[table][OTHERS])
    name = "model.layers.0.mlp.up_proj.weight"
    assert_close(fused.state_dict()[name], (text.state_dict()[name] + image.state_dict()[name]) / 2)


def test_where_one_parent_is_not_tied_the_fused_model_is_not_either():
    text, image = parent(1), parent(2, tie_word_embeddings=False)

    fused = uniform(text, image)

    assert fused.lm_head.weight is not fused.model.embed_tokens.weight
    assert_close(fused.lm_head.weight, (text.model.embed_tokens.weight + image.lm_head.weight) / 2)


def test_the_parents_are_left_as_they_are():
    text, image = parents()
    before = {name: tensor.clone() for name, tensor in text.state_dict().items()}

    uniform(text, image)

    assert all(torch.equal(tensor, before[name]) for name, tensor in text.state_dict().items())
    assert image.config.tie_word_embeddings


def test_a_share_outside_0_and_1_is_refused():
    with pytest.raises(ConfigError, match=r"alpha is 1\.5"):
        UniformOptions(alpha=1.5)
