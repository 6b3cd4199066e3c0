import pytest
import torch
from tests.models.tiny import clip, picture
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.vision_encoder import VisionEncoder


def run_layers(model, pixels, num_layers):
    """The stock model by hand, up to a layer."""
    states = model.pre_layrnorm(model.embeddings(pixels))
    for layer in model.encoder.layers[:num_layers]:
        states = layer(states, attention_mask=None)
        states = states[0] if isinstance(states, tuple) else states
    return states


@pytest.mark.parametrize(("select_layer", "num_layers"), [(-1, 3), (-2, 2), (0, 0), (1, 1), (3, 3)])
def test_the_selected_layer_is_the_one_counted_by_hand(select_layer, num_layers):
    model, pixels = clip().eval(), torch.stack([picture(0), picture(1)])

    tokens = VisionEncoder(model, select_layer=select_layer)(pixels)

    assert tokens.shape == (2, 4, 16)
    assert_close(tokens, run_layers(model, pixels, num_layers)[:, 1:].detach())


def test_the_class_token_and_the_final_norm_are_a_choice():
    model, pixels = clip().eval(), picture(0)[None]

    encoder = VisionEncoder(model, select_layer=-1, drop_cls=False, post_layernorm=True)

    assert encoder.num_tokens == 5
    assert_close(encoder(pixels), model.post_layernorm(run_layers(model, pixels, 3)).detach())
    assert_close(encoder(pixels)[:, 0], model(pixels).pooler_output.detach())


def test_the_encoder_stays_frozen_and_in_evaluation_mode():
    encoder = VisionEncoder(clip())

    encoder.train()

    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(picture(0)[None].requires_grad_()).requires_grad


def test_no_picture_gives_no_token_of_the_right_width():
    encoder = VisionEncoder(clip())

    assert encoder(torch.zeros(0, 3, 16, 16)).shape == (0, encoder.num_tokens, encoder.width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select_layer": 4}, "choose -4..3"),
        ({"select_layer": -5}, "choose -4..3"),
        ({"select_layer": -2, "post_layernorm": True}, "belongs to the last layer"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VisionEncoder(clip(), **options)
