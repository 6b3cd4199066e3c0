"""The image decoder: a stock latent diffusion model without its text encoder.

A condition takes the place of the text. In training its gradient comes back through the frozen denoiser; in
sampling it is guided against an unconditional one. Pixels are float32 in [-1, 1]. A kind of decoder says how
its denoiser is called, how latents get their noise and what is to be predicted; everything else is here.
DreamLLM (arXiv:2309.11499), sections 3.1 and 3.2.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from dreamllm.errors import ConfigError
from dreamllm.losses.denoising import denoising_error
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.draws import Generators, device_of, draw_rows

SamplerName = Literal["dpm", "ddpm", "ddim", "euler"]
"""`dpm`: DPM-Solver++, 20 steps or so. `ddpm`: ancestral, the paper's, 50 to 150 steps. `ddim`: no noise.
`euler`: straight along the flow, 28 steps or so."""

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with the number of steps done, the number of steps, and the latents."""


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents with noise on them, and what the denoiser is to say of them."""

    latents: Float[Tensor, "M Z h w"]
    timesteps: Float[Tensor, " M"]
    target: Float[Tensor, "M Z h w"]
    weight: Float[Tensor, " M"] | None
    """Of each picture's error; None weighs all alike."""


class ImageDecoder(nn.Module, ABC):
    """In evaluation mode whatever `train()` says, and frozen unless a stage trains its denoiser."""

    denoiser_name: ClassVar[Literal["unet", "transformer"]]
    """What diffusers calls the denoiser of this kind, as an attribute and as a folder."""
    denoiser_class: ClassVar[Any]
    vae_class: ClassVar[Any]
    samplers: ClassVar[tuple[SamplerName, ...]]
    """Those that fit; the first is used where none is named."""

    vae: Any
    scheduler: Any

    def __init__(self, denoiser: Any, vae: Any, scheduler: Any) -> None:
        """Raises ConfigError if the denoiser does not work on what the VAE makes."""
        super().__init__()
        made, read = vae.config.latent_channels, denoiser.config.in_channels
        if made != read:
            raise ConfigError(
                f"the {self.denoiser_name} reads {read} latent channels but the VAE makes {made}; "
                "choose the VAE it was trained with, and no variant for inpainting or editing"
            )
        setattr(self, self.denoiser_name, denoiser.eval().requires_grad_(False))
        self.vae = vae.eval().requires_grad_(False)
        self.scheduler = scheduler

    @classmethod
    @abstractmethod
    def make_scheduler(cls, config: Mapping[str, Any]) -> Any:
        """The stock scheduler that training and sampling start from, given any stock one's configuration."""

    @property
    @abstractmethod
    def condition_width(self) -> int:
        """C."""

    @property
    def pooled_width(self) -> int:
        """G; 0 where the denoiser reads no pooled vector."""
        return 0

    @property
    def denoiser(self) -> Any:
        """The U-Net or the transformer."""
        return getattr(self, self.denoiser_name)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Z, h, w of one picture."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.denoiser.config.in_channels, height, width

    @property
    def moment_shape(self) -> tuple[int, int, int]:
        """Y, h, w of what the VAE says of one picture: mean and log-variance, so Y is 2Z."""
        channels, height, width = self.latent_shape
        return 2 * channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """H, W of one picture, in pixels."""
        _, height, width = self.latent_shape
        return height * self.vae_factor, width * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Pixels a latent is wide."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def parts(self) -> dict[str, Any]:
        """The stock parts by the names of their folders."""
        return {self.denoiser_name: self.denoiser, "vae": self.vae, "scheduler": self.scheduler}

    def train(self, mode: bool = True) -> Self:
        """Leave the frozen models in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "M 3 H W"], generator: Generators) -> Float[Tensor, "M Z h w"]:
        """Latents of each picture, float32, at the scale the denoiser works in.

        Where the VAE has a posterior they are a sample of it.
        """
        return self.latents(self.moments(pixels), generator)

    @torch.no_grad()
    def moments(self, pixels: Float[Tensor, "M 3 H W"]) -> Float[Tensor, "M Y h w"]:
        """What the VAE says of each picture, in its own type and at its own scale: mean and log-variance
        of a posterior, or the latents where it has none. No random number goes in."""
        if pixels.shape[0] == 0:  # the stock model cannot attend over an empty batch
            return pixels.new_zeros(0, *self.moment_shape, dtype=self.vae.dtype)
        return self._moments(pixels.to(self.vae.dtype))

    @torch.no_grad()
    def latents(self, moments: Float[Tensor, "M Y h w"], generator: Generators) -> Float[Tensor, "M Z h w"]:
        """Latents of `moments`, float32, at the scale the denoiser works in."""
        if moments.shape[0] == 0:
            return moments.new_zeros(0, *self.latent_shape, dtype=torch.float32)
        raw = self._sample_moments(moments, generator).float()
        return (raw - self._latent_shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "M Z h w"]) -> Float[Tensor, "M 3 H W"]:
        """Pixels of latents, clamped to [-1, 1]."""
        latents = latents / self.vae.config.scaling_factor + self._latent_shift
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def denoising_loss(
        self,
        latents: Float[Tensor, "M Z h w"],
        condition: Condition,
        generator: Generators,
        *,
        noises_per_image: int = 1,
        min_snr_gamma: float | None = None,
    ) -> Float[Tensor, " M"]:
        """Error of each picture at random noise levels; its gradient reaches the condition alone.

        Random numbers are drawn on the generator's device, so that a CPU generator gives the same ones on
        every machine; with a generator a picture, its error does not depend on the other pictures. Several
        noises a picture lower the variance of the gradient for one pass of the language model.
        """
        if latents.shape[0] == 0:
            # A denoiser that trains gets a gradient of zeros, which ranks that share it all have to give.
            learned = [p for p in self.denoiser.parameters() if p.requires_grad]
            nothing = sum((0 * p.float().sum() for p in learned), start=condition.tokens.new_zeros(()))
            return condition.tokens.float().sum(dim=(1, 2)) + condition.pooled.float().sum(dim=1) + nothing
        latents = latents.repeat_interleave(noises_per_image, dim=0)
        source = device_of(generator, otherwise=latents.device)
        noise = draw_rows(
            len(latents),
            generator,
            lambda rows, g: torch.randn(rows, *latents.shape[1:], generator=g, device=source),
        )
        noised = self.add_noise(
            latents, noise.to(latents.device, non_blocking=True), generator, min_snr_gamma=min_snr_gamma
        )
        predicted = self.predict(noised.latents, noised.timesteps, condition.repeat(noises_per_image))
        error = denoising_error(predicted, noised.target)
        if noised.weight is not None:
            error = error * noised.weight
        return rearrange(error, "(M n) -> M n", n=noises_per_image).mean(1)

    @abstractmethod
    def add_noise(
        self,
        latents: Float[Tensor, "M Z h w"],
        noise: Float[Tensor, "M Z h w"],
        generator: Generators,
        *,
        min_snr_gamma: float | None = None,
    ) -> Noised:
        """Put noise on latents, at levels drawn as this kind of decoder was trained."""

    @abstractmethod
    def predict(
        self, latents: Float[Tensor, "M Z h w"], timesteps: Float[Tensor, " M"], condition: Condition
    ) -> Float[Tensor, "M Z h w"]:
        """One call of the denoiser, float32."""

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        unconditional: Condition | None,
        *,
        noise: Sequence[torch.Generator] | Float[Tensor, "M Z h w"],
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: SamplerName | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "M 3 H W"]:
        """Draw one picture for each condition.

        `noise` is one generator a picture, or the initial latents: a picture depends on its own noise and
        not on the batch it is drawn in. A prediction is unconditional + guidance_scale * (conditional -
        unconditional); at scale 1 guidance is left out and `unconditional`, one condition, is not used.

        Raises:
            ConfigError: guidance without an unconditional condition, noise for another number of pictures,
                initial latents for the ancestral sampler, which draws noise in every step, or a sampler that
                does not fit this kind of decoder.
        """
        name = self.samplers[0] if scheduler is None else scheduler
        self._check_request(condition, unconditional, noise, guidance_scale, name)
        both = None
        if guidance_scale != 1 and unconditional is not None:
            both = Condition.cat([unconditional.expand(len(condition)), condition])  # 2M: one call a step
        sampler = self.make_sampler(name)
        sampler.set_timesteps(num_inference_steps, device=condition.tokens.device)
        latents = self._initial_latents(noise, condition.tokens.device)
        latents = latents * getattr(sampler, "init_noise_sigma", 1.0)  # flow samplers have none
        options = {} if isinstance(noise, Tensor) or name != "ddpm" else {"generator": list(noise)}
        for index, timestep in enumerate(sampler.timesteps):
            if both is None:
                predicted = self.predict(latents, timestep.expand(len(latents)), condition)
            else:
                twice = torch.cat([latents, latents])
                blank, told = self.predict(twice, timestep.expand(len(twice)), both).chunk(2)
                predicted = blank + guidance_scale * (told - blank)
            latents = sampler.step(predicted, timestep, latents, **options).prev_sample
            if on_step is not None:
                on_step(index + 1, len(sampler.timesteps), latents)
        return self.decode(latents)

    @abstractmethod
    def make_sampler(self, name: SamplerName) -> Any:
        """The stock sampler of a name out of `samplers`. Its model inputs need no scaling."""

    @staticmethod
    def to_pil(pixels: Float[Tensor, "M 3 H W"]) -> list[PILImage.Image]:
        """Pictures of pixels in [-1, 1]."""
        values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [
            PILImage.fromarray(np.asarray(value)) for value in rearrange(values, "M c H W -> M H W c").cpu()
        ]

    @property
    def _latent_shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    def _moments(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.parameters

    def _sample_moments(self, moments: Tensor, generator: Generators) -> Tensor:
        return DiagonalGaussianDistribution(moments).sample(generator)  # takes one generator or one a picture

    def _check_request(
        self,
        condition: Condition,
        unconditional: Condition | None,
        noise: Sequence[torch.Generator] | Tensor,
        guidance_scale: float,
        sampler: str,
    ) -> None:
        if sampler not in self.samplers:
            raise ConfigError(
                f"{type(self).__name__} cannot draw with the sampler {sampler!r}; "
                f"choose one of {', '.join(self.samplers)}"
            )
        if guidance_scale != 1 and unconditional is None:
            raise ConfigError(
                f"guidance_scale is {guidance_scale} but there is no unconditional condition; pass one, "
                "or use guidance_scale=1"
            )
        if len(noise) != len(condition):
            raise ConfigError(
                f"there is noise for {len(noise)} pictures but {len(condition)} conditions; give one "
                "generator, or one row of latents, to each"
            )
        if isinstance(noise, Tensor) and sampler == "ddpm":
            raise ConfigError(
                "the 'ddpm' sampler draws noise in every step but initial latents were given; pass a "
                "list with one generator for each picture, or choose 'dpm' or 'ddim'"
            )

    def _initial_latents(self, noise: Sequence[torch.Generator] | Tensor, device: torch.device) -> Tensor:
        if isinstance(noise, Tensor):
            return noise.to(device, torch.float32)
        rows = [torch.randn(self.latent_shape, generator=g, device=g.device).to(device) for g in noise]
        return torch.stack(rows)
