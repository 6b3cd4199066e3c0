import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tests.models.tiny import decoder, picture
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.decoders.condition import Condition

# diffusers 0.42 turns tensors into NumPy arrays in the manner of NumPy 1; delete when it no longer does
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHARED = decoder()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def conditions(num_images, seed=9):
    tokens = torch.randn(num_images, 3, 24, generator=torch.Generator().manual_seed(seed))
    return Condition.of_tokens(tokens)


def test_encoding_samples_the_posterior_and_scales_it():
    model, pixels = decoder(shift_factor=0.5), torch.stack([picture(0), picture(1)])
    posterior = model.vae.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))

    latents = model.encode(pixels, torch.Generator().manual_seed(5))

    assert_close(latents, ((posterior.mean + posterior.std * noise - 0.5) * 0.18215).detach())
    assert model.image_size == (16, 16)
    assert model.latent_shape == tuple(latents.shape[1:])


def test_decoding_undoes_the_scale_of_encoding():
    model = decoder(shift_factor=0.5)
    raw = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    pixels = model.decode((raw - 0.5) * 0.18215)

    assert_close(pixels, model.vae.decode(raw).sample.clamp(-1, 1).detach())


def test_the_loss_equals_a_plain_computation_with_the_same_random_numbers():
    latents, condition = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), conditions(2)
    draw = torch.Generator().manual_seed(7)
    noise, timesteps = (
        torch.randn(latents.shape, generator=draw),
        torch.randint(0, 1000, (2,), generator=draw),
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's schedule
    signal = torch.cumprod(1 - betas, 0)[timesteps].view(2, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    expected = (SHARED.unet(noisy, timesteps, condition.tokens).sample - noise).square().mean(dim=(1, 2, 3))

    losses = SHARED.denoising_loss(latents, condition, torch.Generator().manual_seed(7))

    assert_close(losses, expected)


def test_several_noises_a_picture_are_averaged_within_the_picture():
    latents, condition = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), conditions(2)
    repeated = SHARED.denoising_loss(
        latents.repeat_interleave(3, 0), condition.repeat(3), torch.Generator().manual_seed(1)
    )

    losses = SHARED.denoising_loss(latents, condition, torch.Generator().manual_seed(1), noises_per_image=3)

    assert_close(losses, repeated.view(2, 3).mean(1))


def test_the_gradient_reaches_the_condition_and_nothing_frozen():
    condition = conditions(1)
    condition.tokens.requires_grad_()

    SHARED.denoising_loss(
        torch.randn(1, 4, 8, 8), condition, torch.Generator().manual_seed(0)
    ).sum().backward()

    assert condition.tokens.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in SHARED.parameters())
    assert not any(module.training for module in SHARED.train().modules())


def test_min_snr_lowers_the_loss_where_noise_is_weak():
    latents, condition = torch.randn(4, 4, 8, 8), conditions(4)

    plain = SHARED.denoising_loss(latents, condition, torch.Generator().manual_seed(2))
    weighed = SHARED.denoising_loss(latents, condition, torch.Generator().manual_seed(2), min_snr_gamma=1e-3)

    assert (weighed < plain).all()  # a signal-to-noise ratio is below 0.001 at no step of this schedule


@pytest.mark.parametrize("scheduler", ["dpm", "ddpm", "ddim"])
def test_a_picture_does_not_depend_on_the_batch_it_is_drawn_in(scheduler):
    condition, unconditional = conditions(3), conditions(1, seed=8)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "scheduler": scheduler}

    together = SHARED.sample(condition, unconditional, noise=generators(10, 11, 12), **options)
    alone = SHARED.sample(condition[1:2], unconditional, noise=generators(11), **options)

    assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_guidance_of_scale_one_is_no_guidance():
    condition, unconditional = conditions(1), conditions(1, seed=8)

    def drawn(unconditional, scale):
        return SHARED.sample(
            condition, unconditional, noise=generators(0), num_inference_steps=3, guidance_scale=scale
        )

    assert torch.equal(drawn(unconditional, 1), drawn(None, 1))
    assert_close(drawn(unconditional, 1.0 + 1e-7), drawn(None, 1), atol=1e-4, rtol=0)
    assert_close(drawn(condition, 6.0), drawn(None, 1), atol=1e-4, rtol=0)  # nothing to move away from
    assert (drawn(unconditional, 6.0) - drawn(None, 1)).abs().max() > 1e-4


def test_ddim_equals_a_plain_loop_with_guidance():
    condition, unconditional = conditions(1), conditions(1, seed=8)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    sampler = DDIMScheduler.from_config(SHARED.scheduler.config, set_alpha_to_one=False)
    sampler.set_timesteps(3)
    state = latents
    with torch.no_grad():
        for t in sampler.timesteps:
            blank = SHARED.unet(state, t, unconditional.tokens).sample
            full = SHARED.unet(state, t, condition.tokens).sample
            state = sampler.step(blank + 2.5 * (full - blank), t, state).prev_sample
        expected = SHARED.vae.decode(state / 0.18215).sample.clamp(-1, 1)

    drawn = SHARED.sample(
        condition, unconditional, noise=latents, num_inference_steps=3, guidance_scale=2.5, scheduler="ddim"
    )

    assert_close(drawn, expected, atol=1e-5, rtol=0)


def test_every_step_is_told_with_its_latents():
    told = []

    pixels = SHARED.sample(
        conditions(1),
        None,
        noise=generators(0),
        num_inference_steps=3,
        guidance_scale=1,
        on_step=lambda step, num_steps, latents: told.append((step, num_steps, latents)),
    )

    assert [(step, num_steps) for step, num_steps, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert_close(SHARED.decode(told[-1][2]), pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": generators(0), "guidance_scale": 2.0}, "no unconditional condition"),
        ({"noise": generators(0, 1), "guidance_scale": 1}, "noise for 2 pictures but 1 conditions"),
        ({"noise": torch.zeros(1, 4, 8, 8), "guidance_scale": 1, "scheduler": "ddpm"}, "noise in every step"),
        (
            {"noise": generators(0), "guidance_scale": 1, "scheduler": "euler"},
            "cannot draw with the sampler 'euler'",
        ),
    ],
)
def test_sampling_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SHARED.sample(conditions(1), None, num_inference_steps=2, **options)


def test_pictures_span_black_to_white():
    pixels = torch.stack([torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 1.0), torch.zeros(3, 2, 2)])
    pixels[2, 0] = 0.5

    pictures = SHARED.to_pil(pixels)

    assert [p.getpixel((0, 0)) for p in pictures] == [(0, 0, 0), (255, 255, 255), (191, 128, 128)]
    assert all(p.mode == "RGB" and p.size == (2, 2) for p in pictures)
