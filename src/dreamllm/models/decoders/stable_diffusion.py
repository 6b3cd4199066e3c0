"""Stable Diffusion 1.x, 2.x and XL: a U-Net over latents, with discrete noise levels.

DreamLLM (arXiv:2309.11499) draws with Stable Diffusion 2.1. XL (arXiv:2307.01952) is told the size of its
picture and a pooled vector besides.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from dreamllm.losses.denoising import denoising_target, min_snr_weight
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.draws import Generators, device_of, draw_rows
from dreamllm.models.decoders.image_decoder import ImageDecoder, Noised, SamplerName


class StableDiffusionDecoder(ImageDecoder):
    """Stable Diffusion 1.x or 2.x; what is predicted (noise or velocity) stands in its scheduler."""

    denoiser_name = "unet"
    denoiser_class = UNet2DConditionModel
    vae_class = AutoencoderKL
    samplers = ("dpm", "ddpm", "ddim")

    unet: UNet2DConditionModel
    scheduler: DDPMScheduler

    @classmethod
    def make_scheduler(cls, config: Mapping[str, Any]) -> DDPMScheduler:
        """The noise levels of any stock scheduler, for training. Latents are never clipped."""
        return DDPMScheduler.from_config({**config, "clip_sample": False})

    @property
    def condition_width(self) -> int:
        """C."""
        return self.unet.config.cross_attention_dim

    def add_noise(
        self,
        latents: Float[Tensor, "M Z h w"],
        noise: Float[Tensor, "M Z h w"],
        generator: Generators,
        *,
        min_snr_gamma: float | None = None,
    ) -> Noised:
        """Noise at uniform random levels; the errors may be weighed by min-SNR."""
        device = device_of(generator, otherwise=latents.device)
        levels = self.scheduler.config.num_train_timesteps
        timesteps = draw_rows(
            len(latents),
            generator,
            lambda rows, g: torch.randint(0, levels, (rows,), generator=g, device=device),
        )
        timesteps = timesteps.to(latents.device, non_blocking=True)
        weight = None
        if min_snr_gamma is not None:
            weight = min_snr_weight(self.scheduler, timesteps, min_snr_gamma)
        return Noised(
            self.scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            denoising_target(self.scheduler, latents, noise, timesteps),
            weight,
        )

    def predict(
        self, latents: Float[Tensor, "M Z h w"], timesteps: Float[Tensor, " M"], condition: Condition
    ) -> Float[Tensor, "M Z h w"]:
        """One call of the U-Net, float32."""
        dtype = self.unet.dtype
        return self.unet(latents.to(dtype), timesteps, condition.tokens.to(dtype)).sample.float()

    def make_sampler(self, name: SamplerName) -> Any:
        """DPM-Solver++, ancestral DDPM or DDIM on the noise levels of training."""
        match name:
            case "ddpm":
                return DDPMScheduler.from_config(self.scheduler.config)
            case "ddim":
                return DDIMScheduler.from_config(self.scheduler.config, set_alpha_to_one=False)
            case _:
                return DPMSolverMultistepScheduler.from_config(self.scheduler.config)  # dpmsolver++


class StableDiffusionXLDecoder(StableDiffusionDecoder):
    """Stable Diffusion XL: the pooled condition and the picture's size go in beside the time step."""

    @property
    def pooled_width(self) -> int:
        """G: what is left of the U-Net's additional input after the six size ids."""
        config = self.unet.config
        return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def predict(
        self, latents: Float[Tensor, "M Z h w"], timesteps: Float[Tensor, " M"], condition: Condition
    ) -> Float[Tensor, "M Z h w"]:
        """One call of the U-Net, float32, for a whole picture of the size of its latents."""
        dtype = self.unet.dtype
        height, width = (size * self.vae_factor for size in latents.shape[2:])
        ids = latents.new_tensor([height, width, 0, 0, height, width], dtype=dtype)  # original, crop, target
        added = {"text_embeds": condition.pooled.to(dtype), "time_ids": ids.expand(len(latents), -1)}
        return self.unet(
            latents.to(dtype), timesteps, condition.tokens.to(dtype), added_cond_kwargs=added
        ).sample.float()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the VAE out of float16, where its activations overflow (`force_upcast` in its config)."""
        super()._apply(fn, recurse)
        if self.vae.dtype is torch.float16:
            self.vae.float()
        return self
