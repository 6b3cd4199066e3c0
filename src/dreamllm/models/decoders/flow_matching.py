"""Flow-matching transformers: Stable Diffusion 3 and Sana.

A latent at level s in [0, 1] is (1 - s) * picture + s * noise, and the transformer says noise - picture.
Levels are logit-normal in training and then shifted towards noise. Esser et al. 2024 (arXiv:2403.03206),
sections 2 and 3.1; Xie et al. 2024 (arXiv:2410.10629).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from jaxtyping import Float
from torch import Tensor

from dreamllm.errors import ConfigError
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.draws import Generators, device_of, draw_rows
from dreamllm.models.decoders.image_decoder import ImageDecoder, Noised, SamplerName


class FlowMatchingDecoder(ImageDecoder):
    """What the two have in common."""

    denoiser_name = "transformer"
    samplers: ClassVar[tuple[SamplerName, ...]] = ("euler", "dpm")

    scheduler: FlowMatchEulerDiscreteScheduler

    @classmethod
    def make_scheduler(cls, config: Mapping[str, Any]) -> FlowMatchEulerDiscreteScheduler:
        """The levels of a stock flow scheduler, whichever solver it belongs to.

        Raises:
            ConfigError: the shift depends on the size of a picture, which neither of the two does.
        """
        if config.get("use_dynamic_shifting"):
            raise ConfigError(
                "the scheduler has use_dynamic_shifting=True; a fixed shift is expected, "
                "as Stable Diffusion 3 and Sana have; choose the scheduler of one of these"
            )
        steps = config.get("num_train_timesteps", 1000)
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=shift)

    def add_noise(
        self,
        latents: Float[Tensor, "M Z h w"],
        noise: Float[Tensor, "M Z h w"],
        generator: Generators,
        *,
        min_snr_gamma: float | None = None,
    ) -> Noised:
        """Noise at logit-normal levels (location 0, scale 1) after the scheduler's shift."""
        if min_snr_gamma is not None:
            raise ConfigError(
                f"min_snr_gamma is {min_snr_gamma}, but the weights of min-SNR belong to diffusion with "
                "discrete noise levels; leave it out for a flow-matching decoder"
            )
        device = device_of(generator, otherwise=latents.device)
        levels = draw_rows(
            len(latents),
            generator,
            lambda rows, g: compute_density_for_timestep_sampling(
                "logit_normal", rows, logit_mean=0.0, logit_std=1.0, device=device, generator=g
            ),
        ).to(latents.device, torch.float32)
        shift = self.scheduler.config.shift
        levels = shift * levels / (1 + (shift - 1) * levels)
        share = levels.view(-1, 1, 1, 1)
        return Noised(
            (1 - share) * latents + share * noise,
            levels * self.scheduler.config.num_train_timesteps,
            noise - latents,
            None,
        )

    def make_sampler(self, name: SamplerName) -> Any:
        """Euler steps along the flow, or DPM-Solver++ on the same levels."""
        config = self.scheduler.config
        if name == "euler":
            return FlowMatchEulerDiscreteScheduler.from_config(config)
        return DPMSolverMultistepScheduler(
            num_train_timesteps=config.num_train_timesteps,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=config.shift,
        )


class StableDiffusion3Decoder(FlowMatchingDecoder):
    """Stable Diffusion 3 and 3.5."""

    denoiser_class = SD3Transformer2DModel
    vae_class = AutoencoderKL

    transformer: SD3Transformer2DModel

    @property
    def condition_width(self) -> int:
        """C."""
        return self.transformer.config.joint_attention_dim

    @property
    def pooled_width(self) -> int:
        """G."""
        return self.transformer.config.pooled_projection_dim

    def predict(
        self, latents: Float[Tensor, "M Z h w"], timesteps: Float[Tensor, " M"], condition: Condition
    ) -> Float[Tensor, "M Z h w"]:
        """One call of the transformer, float32."""
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            encoder_hidden_states=condition.tokens.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
            timestep=timesteps,
        ).sample.float()


class SanaDecoder(FlowMatchingDecoder):
    """Sana: a linear-attention transformer over the latents of a deep-compression autoencoder."""

    denoiser_class = SanaTransformer2DModel
    vae_class = AutoencoderDC
    samplers = ("dpm", "euler")

    transformer: SanaTransformer2DModel

    @property
    def condition_width(self) -> int:
        """C."""
        return self.transformer.config.caption_channels

    @property
    def vae_factor(self) -> int:
        """Pixels a latent is wide."""
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    def predict(
        self, latents: Float[Tensor, "M Z h w"], timesteps: Float[Tensor, " M"], condition: Condition
    ) -> Float[Tensor, "M Z h w"]:
        """One call of the transformer, float32."""
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            encoder_hidden_states=condition.tokens.to(dtype),
            timestep=timesteps * self.transformer.config.timestep_scale,
        ).sample.float()

    @property
    def moment_shape(self) -> tuple[int, int, int]:
        """Z, h, w: this autoencoder has no posterior."""
        return self.latent_shape

    def _moments(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent

    def _sample_moments(self, moments: Tensor, generator: Generators) -> Tensor:
        return moments
