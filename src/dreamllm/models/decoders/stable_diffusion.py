"""The image decoder: a stock, frozen Stable Diffusion (U-Net, VAE and noise scheduler, no text encoder).

A condition (K vectors of width C a picture) takes the place of the text states. In training its gradient
comes back through the frozen U-Net; in sampling it is guided against an unconditional one. Pixels are
float32 in [-1, 1]. DreamLLM (arXiv:2309.11499), sections 3.1 and 3.2.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from einops import rearrange, repeat
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from dreamllm.errors import ConfigError
from dreamllm.losses.denoising import denoising_error, denoising_target, min_snr_weight

SamplerName = Literal["dpm", "ddpm", "ddim"]
"""`dpm`: DPM-Solver++, 20 steps or so. `ddpm`: ancestral, the paper's, 50 to 150 steps. `ddim`: no noise."""

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with the number of steps done, the number of steps, and the latents."""


class StableDiffusionDecoder(nn.Module):
    """Frozen, and in evaluation mode whatever `train()` says."""

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.scheduler = scheduler

    @property
    def condition_width(self) -> int:
        """C."""
        return self.unet.config.cross_attention_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Z, h, w of one picture."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """H, W of one picture, in pixels."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, height, width = self.latent_shape
        return height * factor, width * factor

    def train(self, mode: bool = True) -> Self:
        """Leave the frozen models in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "M 3 H W"], generator: torch.Generator | None
    ) -> Float[Tensor, "M Z h w"]:
        """A sample of the VAE posterior of each picture, float32, at the scale the U-Net works in."""
        if pixels.shape[0] == 0:  # the stock model cannot attend over an empty batch
            return pixels.new_zeros(0, *self.latent_shape, dtype=torch.float32)
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.sample(generator).float()
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "M Z h w"]) -> Float[Tensor, "M 3 H W"]:
        """Pixels of latents, clamped to [-1, 1]."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def denoising_loss(
        self,
        latents: Float[Tensor, "M Z h w"],
        condition: Float[Tensor, "M K C"],
        generator: torch.Generator | None,
        *,
        noises_per_image: int = 1,
        min_snr_gamma: float | None = None,
    ) -> Float[Tensor, " M"]:
        """Error of each picture at uniform random noise levels; its gradient reaches the condition alone.

        Random numbers are drawn on the generator's device, so that a CPU generator gives the same ones on
        every machine. Several noises a picture lower the variance of the gradient for one pass of the
        language model.
        """
        if latents.shape[0] == 0:
            return condition.float().sum(dim=(1, 2))
        latents = repeat(latents, "M Z h w -> (M n) Z h w", n=noises_per_image)
        condition = repeat(condition, "M K C -> (M n) K C", n=noises_per_image)
        source = latents.device if generator is None else generator.device
        noise = torch.randn(latents.shape, generator=generator, device=source)
        steps = (0, self.scheduler.config.num_train_timesteps, latents.shape[:1])
        timesteps = torch.randint(*steps, generator=generator, device=source)
        noise = noise.to(latents.device, non_blocking=True)
        timesteps = timesteps.to(latents.device, non_blocking=True)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = denoising_target(self.scheduler, latents, noise, timesteps)
        error = denoising_error(self._predict(noisy, timesteps, condition), target)
        if min_snr_gamma is not None:
            error = error * min_snr_weight(self.scheduler, timesteps, min_snr_gamma)
        return rearrange(error, "(M n) -> M n", n=noises_per_image).mean(1)

    @torch.no_grad()
    def sample(
        self,
        condition: Float[Tensor, "M K C"],
        unconditional: Float[Tensor, "1 K C"] | None,
        *,
        noise: Sequence[torch.Generator] | Float[Tensor, "M Z h w"],
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: SamplerName = "dpm",
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "M 3 H W"]:
        """Draw one picture for each condition.

        `noise` is one generator a picture, or the initial latents: a picture depends on its own noise and
        not on the batch it is drawn in. A prediction is unconditional + guidance_scale * (conditional -
        unconditional); at scale 1 guidance is left out and `unconditional` is not used.

        Raises:
            ConfigError: guidance without an unconditional condition, noise for another number of pictures, or
                initial latents for the ancestral sampler, which draws noise in every step.
        """
        if guidance_scale != 1 and unconditional is None:
            raise ConfigError(
                f"guidance_scale is {guidance_scale} but there is no unconditional condition; pass one, "
                "or use guidance_scale=1"
            )
        if len(noise) != condition.shape[0]:
            raise ConfigError(
                f"there is noise for {len(noise)} pictures but {condition.shape[0]} conditions; give one "
                "generator, or one row of latents, to each"
            )
        if isinstance(noise, Tensor) and scheduler == "ddpm":
            raise ConfigError(
                "the 'ddpm' sampler draws noise in every step but initial latents were given; pass a "
                "list with one generator for each picture, or choose 'dpm' or 'ddim'"
            )
        both = None
        if guidance_scale != 1 and unconditional is not None:
            both = torch.cat([unconditional.expand_as(condition), condition])  # (2M, K, C): one call a step
        generators = None if isinstance(noise, Tensor) else list(noise)
        sampler = self._sampler(scheduler)
        sampler.set_timesteps(num_inference_steps, device=condition.device)
        latents = self._initial_latents(noise, condition.device) * sampler.init_noise_sigma
        for index, timestep in enumerate(sampler.timesteps):
            inputs = sampler.scale_model_input(latents, timestep)
            if both is None:
                predicted = self._predict(inputs, timestep, condition)
            else:
                blank, told = self._predict(torch.cat([inputs, inputs]), timestep, both).chunk(2)
                predicted = blank + guidance_scale * (told - blank)
            if scheduler == "ddpm":
                latents = sampler.step(predicted, timestep, latents, generator=generators).prev_sample
            else:
                latents = sampler.step(predicted, timestep, latents).prev_sample
            if on_step is not None:
                on_step(index + 1, len(sampler.timesteps), latents)
        return self.decode(latents)

    @staticmethod
    def to_pil(pixels: Float[Tensor, "M 3 H W"]) -> list[PILImage.Image]:
        """Pictures of pixels in [-1, 1]."""
        values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [
            PILImage.fromarray(np.asarray(value)) for value in rearrange(values, "M c H W -> M H W c").cpu()
        ]

    def _predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(latents.to(dtype), timesteps, condition.to(dtype)).sample.float()

    def _sampler(self, name: SamplerName) -> DPMSolverMultistepScheduler | DDPMScheduler | DDIMScheduler:
        match name:
            case "dpm":
                return DPMSolverMultistepScheduler.from_config(
                    self.scheduler.config
                )  # dpmsolver++ by default
            case "ddpm":
                return DDPMScheduler.from_config(self.scheduler.config)
            case "ddim":
                return DDIMScheduler.from_config(self.scheduler.config, set_alpha_to_one=False)
            case unknown:
                raise ConfigError(f"there is no sampler {unknown!r}; choose 'dpm', 'ddpm' or 'ddim'")

    def _initial_latents(self, noise: Sequence[torch.Generator] | Tensor, device: torch.device) -> Tensor:
        if isinstance(noise, Tensor):
            return noise.to(device, torch.float32)
        rows = [torch.randn(self.latent_shape, generator=g, device=g.device).to(device) for g in noise]
        return torch.stack(rows)
