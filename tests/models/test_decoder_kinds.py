"""Every kind of image decoder against the stock pipeline that owns its parts."""

import pytest
import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from tests.models.tiny import decoder, picture
from tests.models.tiny_decoders import DECODERS, sana, stable_diffusion_3, stable_diffusion_xl
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.flow_matching import FlowMatchingDecoder
from dreamllm.models.decoders.kinds import decoder_class
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EACH = pytest.mark.parametrize("kind", DECODERS)


def condition_for(model, num_images, seed=9):
    draw = torch.Generator().manual_seed(seed)
    return Condition(
        torch.randn(num_images, 3, model.condition_width, generator=draw),
        torch.randn(num_images, model.pooled_width, generator=draw),
    )


def stock_drawing(kind, model, told, blank, latents, sampler):
    """What the stock pipeline draws, given embeddings in place of texts."""
    common = {
        "prompt_embeds": told.tokens,
        "negative_prompt_embeds": blank.tokens,
        "latents": latents.clone(),
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "output_type": "pt",
    }
    pooled = {"pooled_prompt_embeds": told.pooled, "negative_pooled_prompt_embeds": blank.pooled}
    size = {"height": 2 * latents.shape[2], "width": 2 * latents.shape[3]}
    if kind == "sana":
        pipeline = SanaPipeline(None, None, model.vae, model.transformer, sampler)
        ones = torch.ones(told.tokens.shape[:2])
        masks = {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}
        masks["negative_prompt"] = None
        return pipeline(**common, **masks, **size, use_resolution_binning=False).images
    if kind == "sd3":
        texts = dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        )
        pipeline = StableDiffusion3Pipeline(model.transformer, sampler, model.vae, **texts)
        return pipeline(**common, **pooled, **size).images
    if kind == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            model.vae, None, None, None, None, model.unet, sampler, force_zeros_for_empty_prompt=False
        )
        pipeline.vae.register_to_config(force_upcast=False)
        return pipeline(**common, **pooled, **size).images
    pipeline = StableDiffusionPipeline(
        model.vae, None, None, model.unet, sampler, None, None, requires_safety_checker=False
    )
    return pipeline(**common, **size).images


@EACH
def test_drawing_equals_the_stock_pipeline(kind):
    model = DECODERS[kind]()
    told, blank = condition_for(model, 2), condition_for(model, 1, seed=8)
    channels, height, width = model.latent_shape
    side = 2 if kind == "sana" else 1  # its pipeline draws nothing smaller than 32 pixels
    latents = torch.randn(
        2, channels, side * height, side * width, generator=torch.Generator().manual_seed(1)
    )

    for name in model.samplers:
        if name == "ddpm":
            continue  # draws noise in every step
        drawn = model.sample(
            told, blank, noise=latents, num_inference_steps=4, guidance_scale=3.0, scheduler=name
        )
        stock = stock_drawing(kind, model, told, blank.expand(2), latents, model.make_sampler(name))

        assert_close(drawn / 2 + 0.5, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [stable_diffusion_3, sana])
def test_the_flow_loss_equals_a_computation_by_hand(make):
    model = make()
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    told = condition_for(model, 2)
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(latents.shape, generator=draw)
    level = torch.sigmoid(torch.randn(2, generator=draw))
    level = (3 * level / (1 + 2 * level)).view(2, 1, 1, 1)  # both are shifted by 3
    says = model.predict((1 - level) * latents + level * noise, 1000 * level.flatten(), told)
    expected = (says - (noise - latents)).square().mean(dim=(1, 2, 3))

    losses = model.denoising_loss(latents, told, torch.Generator().manual_seed(7))

    assert_close(losses, expected)


@pytest.mark.parametrize("make", [stable_diffusion_3, sana])
def test_noise_is_put_on_as_the_stock_flow_scheduler_does(make):
    model = make()
    latents, noise = torch.randn(2, 3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    stock = model.make_sampler("euler")
    chosen = stock.timesteps[[100, 500, 900]]

    noised = model.add_noise(latents, noise, torch.Generator().manual_seed(3))

    assert_close(
        stock.scale_noise(latents, chosen, noise),
        (1 - chosen.view(-1, 1, 1, 1) / 1000) * latents + chosen.view(-1, 1, 1, 1) / 1000 * noise,
    )
    level = noised.timesteps.view(-1, 1, 1, 1) / 1000
    assert_close(noised.latents, (1 - level) * latents + level * noise)
    assert_close(noised.latents + (1 - level) * noised.target, noise)  # the flow ends in the noise


@EACH
def test_the_gradient_reaches_the_whole_condition_and_nothing_frozen(kind):
    model = DECODERS[kind]()
    told = condition_for(model, 2)
    told.tokens.requires_grad_()
    told.pooled.requires_grad_()
    latents = model.encode(torch.stack([picture(0), picture(1)]), torch.Generator().manual_seed(0))

    model.denoising_loss(latents, told, torch.Generator().manual_seed(0), noises_per_image=2).sum().backward()

    assert told.tokens.grad.abs().amax(dim=(1, 2)).min() > 0
    assert model.pooled_width == 0 or told.pooled.grad.abs().amax(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@EACH
def test_no_picture_is_no_special_case(kind):
    model = DECODERS[kind]()
    told = condition_for(model, 0)
    told.tokens.requires_grad_()

    loss = model.denoising_loss(model.encode(torch.zeros(0, 3, 16, 16), None), told, None)
    loss.sum().backward()

    assert loss.shape == (0,)
    assert told.tokens.grad.shape == told.tokens.shape


@EACH
def test_a_kind_is_known_by_its_denoiser(kind):
    model = DECODERS[kind]()
    config = dict(model.denoiser.config) | {"_class_name": type(model.denoiser).__name__}

    assert decoder_class(config) is type(model)


def test_schedulers_of_any_stock_pipeline_give_the_levels_of_training():
    flow = {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0, "num_train_timesteps": 1000}
    pndm = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "skip_prk_steps": True,
    }

    diffusion = StableDiffusionDecoder.make_scheduler({**pndm, "prediction_type": "v_prediction"})

    assert FlowMatchingDecoder.make_scheduler(flow).config.shift == 3.0
    assert diffusion.config.prediction_type == "v_prediction"
    assert diffusion.config.clip_sample is False
    assert_close(diffusion.alphas_cumprod[0], torch.tensor(1 - 0.00085))


def test_half_precision_keeps_the_vae_of_xl_exact():
    model = stable_diffusion_xl().half()

    assert model.unet.dtype == torch.float16
    assert model.vae.dtype == torch.float32


def test_parts_that_do_not_fit_are_refused():
    editing = decoder().unet
    editing.register_to_config(in_channels=8)

    with pytest.raises(ConfigError, match="reads 8 latent channels but the VAE makes 4"):
        StableDiffusionDecoder(editing, decoder().vae, decoder().scheduler)
    with pytest.raises(ConfigError, match="use_dynamic_shifting=True"):
        FlowMatchingDecoder.make_scheduler({"use_dynamic_shifting": True})
    with pytest.raises(ConfigError, match="class 'FluxTransformer2DModel'"):
        decoder_class({"_class_name": "FluxTransformer2DModel"})
    with pytest.raises(ConfigError, match="min_snr_gamma"):
        sana().add_noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), None, min_snr_gamma=5.0)
    with pytest.raises(ConfigError, match="cannot draw with the sampler 'ddpm'"):
        sana().sample(
            condition_for(sana(), 1), None, noise=torch.zeros(1, 4, 8, 8), guidance_scale=1, scheduler="ddpm"
        )
