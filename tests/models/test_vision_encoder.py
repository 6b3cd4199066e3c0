import pytest
import torch
from tests.models.tiny import clip
from torch.testing import assert_close
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from dreamllm.errors import ConfigError
from dreamllm.models.vision_encoder import VISION_CLASSES, VisionEncoder, recommended_tokens

BODY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
    "intermediate_size": 24,
}
SIZED = BODY | {"image_size": 24}
FAMILIES = {
    # model_type: (stock class, configuration, layers of the stock model, prefix tokens)
    "clip_vision_model": (CLIPVisionModel, CLIPVisionConfig(**SIZED), "encoder.layers", 1),
    "siglip_vision_model": (SiglipVisionModel, SiglipVisionConfig(**SIZED), "encoder.layers", 0),
    "siglip2_vision_model": (
        Siglip2VisionModel,
        Siglip2VisionConfig(**BODY, num_patches=9),
        "encoder.layers",
        0,
    ),
    "dinov2": (Dinov2Model, Dinov2Config(**SIZED), "encoder.layer", 1),
    "dinov2_with_registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**SIZED, num_register_tokens=4),
        "encoder.layer",
        5,
    ),
    "dinov3_vit": (DINOv3ViTModel, DINOv3ViTConfig(**SIZED, num_register_tokens=2), "model.layer", 3),
}
every_family = pytest.mark.parametrize("model_type", FAMILIES)


def stock(model_type):
    """A random model whose norms, positions and biases all matter."""
    torch.manual_seed(3)
    model_class, config, _, _ = FAMILIES[model_type]
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def pictures(num, size=24):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(4))


def stock_inputs(model, pixels):
    """What the stock forward takes; for NaFlex as its own processor makes it."""
    if not isinstance(model, Siglip2VisionModel):
        return {"pixel_values": pixels}
    patches = torch.stack([torch.from_numpy(convert_image_to_patches(p.numpy(), 8)) for p in pixels])
    side = pixels.shape[-1] // 8
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32),
        "spatial_shapes": torch.tensor([[side, side]] * len(pixels)),
    }


@torch.no_grad()
def run_stock(model, pixels, layers):
    """The stock output, and what its hooks saw: the input of the first layer, then every layer's output."""
    seen = []
    blocks = model.get_submodule(layers)
    handles = [blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
    handles += [block.register_forward_hook(lambda module, args, out: seen.append(out)) for block in blocks]
    output = model(**stock_inputs(model, pixels))
    for handle in handles:
        handle.remove()
    return output, [state[0] if isinstance(state, tuple) else state for state in seen]


@every_family
def test_the_selected_layer_is_the_one_a_hook_sees(model_type):
    model, pixels = stock(model_type), pictures(2)
    _, _, layers, num_prefix = FAMILIES[model_type]

    _, seen = run_stock(model, pixels, layers)

    assert len(seen) == 4
    for select_layer in (0, 1, 2, 3, -1, -2, -4):
        encoder = VisionEncoder(model, select_layer=select_layer)
        tokens = encoder(pixels)
        assert tokens.shape == (2, encoder.num_tokens, encoder.width) == (2, 9, 16)
        assert_close(tokens, seen[select_layer][:, num_prefix:], rtol=0, atol=0)


@every_family
def test_the_last_layer_with_the_final_norm_is_the_stock_result(model_type):
    model, pixels = stock(model_type), pictures(2)
    _, _, layers, num_prefix = FAMILIES[model_type]

    output, _ = run_stock(model, pixels, layers)
    expected = output.last_hidden_state
    if model_type == "clip_vision_model":  # the stock forward normalises the class token alone
        expected = model.post_layernorm(expected).detach()
        assert_close(expected[:, 0], output.pooler_output, rtol=0, atol=0)

    for select_layer in (-1, 3):
        options = {"select_layer": select_layer, "post_layernorm": True}
        assert_close(
            VisionEncoder(model, **options)(pixels), expected[:, num_prefix:].contiguous(), rtol=0, atol=0
        )
        whole = VisionEncoder(model, drop_cls=False, **options)
        assert whole.num_tokens == 9 + num_prefix
        assert_close(whole(pixels), expected, rtol=0, atol=0)


@every_family
def test_the_encoder_stays_frozen_and_in_evaluation_mode(model_type):
    encoder, pixels = VisionEncoder(stock(model_type).train()), pictures(1)
    before = encoder(pixels)

    encoder.train()

    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(pixels.clone().requires_grad_()).requires_grad
    assert_close(encoder(pixels), before, rtol=0, atol=0)


@every_family
@pytest.mark.parametrize("drop_cls", [True, False])
def test_no_picture_gives_no_token_of_the_right_width(model_type, drop_cls):
    encoder = VisionEncoder(stock(model_type), drop_cls=drop_cls)

    assert encoder(pictures(0)).shape == (0, encoder.num_tokens, encoder.width)


@every_family
def test_pixels_are_cast_to_the_type_of_the_model(model_type):
    encoder = VisionEncoder(stock(model_type).bfloat16())

    assert encoder(pictures(1)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "model_type", ["siglip2_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit"]
)
def test_models_that_take_any_size_read_the_size_that_is_asked_for(model_type):
    model, pixels = stock(model_type), pictures(2, size=40)
    _, _, layers, num_prefix = FAMILIES[model_type]

    output, _ = run_stock(model, pixels, layers)
    encoder = VisionEncoder(model, select_layer=-1, post_layernorm=True, image_px=40)

    assert (encoder.image_px, encoder.num_tokens) == (40, 25)
    assert_close(encoder(pixels), output.last_hidden_state[:, num_prefix:].contiguous(), rtol=0, atol=0)


@every_family
def test_the_size_of_pictures_is_the_configured_one(model_type):
    assert VisionEncoder(stock(model_type)).image_px == 24
    assert VisionEncoder(stock(model_type), image_px=24).num_tokens == 9


def test_sizes_written_as_pairs_are_read():
    model = Dinov2Model(Dinov2Config(**SIZED | {"image_size": [32, 32], "patch_size": [8, 8]}))

    assert (VisionEncoder(model).image_px, VisionEncoder(model).num_tokens) == (32, 16)


@pytest.mark.parametrize(
    ("model_type", "tokens"),
    [("clip_vision_model", (-2, False)), ("siglip_vision_model", (-1, True)), ("dinov3_vit", (-1, True))],
)
def test_every_family_has_its_recommended_tokens(model_type, tokens):
    model = stock(model_type)

    select_layer, post_layernorm = recommended_tokens(model.config)

    assert (select_layer, post_layernorm) == tokens
    VisionEncoder(model, select_layer=select_layer, post_layernorm=post_layernorm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select_layer": 4}, "choose -4..3"),
        ({"select_layer": -5}, "choose -4..3"),
        ({"select_layer": -2, "post_layernorm": True}, "belongs to the last layer"),
        ({"image_px": 32}, "reads pictures of 16 pixels alone"),
    ],
)
def test_what_is_not_there_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VisionEncoder(clip(), **options)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ConfigError, match="image_px is 44, expected a multiple of the patch size 8; use 40"):
        VisionEncoder(stock("dinov2"), image_px=44)
    with pytest.raises(ConfigError, match=r"image_px is 0, .* use 8"):
        VisionEncoder(stock("dinov2"), image_px=0)


def test_a_model_for_oblong_pictures_is_refused():
    with pytest.raises(ConfigError, match=r"image_size of the dinov2 is \[16, 32\], but only squares"):
        VisionEncoder(Dinov2Model(Dinov2Config(**SIZED | {"image_size": [16, 32]})))


def test_an_unknown_type_is_refused_with_the_known_ones():
    text = {k: v for k, v in BODY.items() if k != "patch_size"} | {"vocab_size": 60}
    whole = CLIPModel(CLIPConfig(vision_config=SIZED, text_config=text))

    for attempt in (lambda: VisionEncoder(whole), lambda: recommended_tokens(whole.config)):
        with pytest.raises(ConfigError, match=r"'clip' is no vision encoder .* clip_vision.* dinov3_vit"):
            attempt()


@pytest.mark.parametrize(
    ("model_class", "config_class", "vision"),
    [
        (CLIPModel, CLIPConfig, SIZED),
        (SiglipModel, SiglipConfig, SIZED),
        (Siglip2Model, Siglip2Config, BODY | {"num_patches": 9}),
    ],
)
def test_the_vision_half_of_a_two_tower_folder_loads_as_the_class_of_its_type(
    model_class, config_class, vision, tmp_path
):
    text = {k: v for k, v in BODY.items() if k != "patch_size"} | {"vocab_size": 60}
    whole = model_class(config_class(vision_config=vision, text_config=text))
    whole.save_pretrained(tmp_path)

    half, report = VISION_CLASSES[whole.config.model_type].from_pretrained(tmp_path, output_loading_info=True)

    assert not report["missing_keys"]
    assert not any("vision_model" in key for key in report["unexpected_keys"])
    assert VISION_CLASSES[half.config.model_type] is type(half)
    assert half.state_dict().keys() == whole.vision_model.state_dict().keys()
    for name, value in whole.vision_model.state_dict().items():
        assert torch.equal(half.state_dict()[name], value)


@every_family
def test_the_folder_of_a_vision_model_loads_as_the_class_of_its_type(model_type, tmp_path):
    model = stock(model_type)
    VisionEncoder(model).model.save_pretrained(tmp_path)

    again, report = VISION_CLASSES[model_type].from_pretrained(tmp_path, output_loading_info=True)

    assert type(again) is type(model)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_close(VisionEncoder(again)(pictures(1)), VisionEncoder(model)(pictures(1)), rtol=0, atol=0)


def test_the_table_of_classes_names_every_type():
    assert set(VISION_CLASSES) == {"clip", "siglip", "siglip2", *FAMILIES}
