"""The denoising loss: how well a U-Net tells the noise (or the velocity, or the picture) in a noisy latent.

What is to be predicted is read from the diffusers scheduler, which also computes it. Errors come out one a
picture, in float32, so that a caller can weigh, sum and count them. DreamLLM (arXiv:2309.11499), equation 4.
"""

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.errors import ConfigError


def denoising_target(
    scheduler: DDPMScheduler,
    latents: Float[Tensor, "M Z h w"],
    noise: Float[Tensor, "M Z h w"],
    timesteps: Int[Tensor, " M"],
) -> Float[Tensor, "M Z h w"]:
    """What the U-Net is to predict, by the scheduler's `prediction_type`.

    Raises:
        ConfigError: the prediction type is none of epsilon, v_prediction and sample.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            return latents
        case unknown:
            raise _unknown_prediction(unknown)


def denoising_error(
    prediction: Float[Tensor, "M Z h w"],
    target: Float[Tensor, "M Z h w"],
    *,
    spatial_weight: Float[Tensor, "#M #Z h w"] | None = None,
) -> Float[Tensor, " M"]:
    """Mean squared error of each picture, in float32.

    With a spatial weight it is the weighted mean: only the ratios within a picture matter.
    """
    squared = (prediction.float() - target.float()).square()
    if spatial_weight is None:
        return squared.flatten(1).mean(1)
    weight = spatial_weight.float().expand_as(squared)
    return (weight * squared).flatten(1).sum(1) / weight.flatten(1).sum(1)


def min_snr_weight(
    scheduler: DDPMScheduler, timesteps: Int[Tensor, " M"], gamma: float
) -> Float[Tensor, " M"]:
    """Weight of each picture's error that asks for min(snr, gamma) in terms of the clean picture.

    Hang et al. 2023 (arXiv:2303.09556), section 3.4: min(snr, gamma) / snr for epsilon prediction,
    min(snr, gamma) / (snr + 1) for v prediction, min(snr, gamma) for sample prediction.
    """
    snr = compute_snr(scheduler, timesteps)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (gamma / snr).clamp(max=1)  # the same as min(snr, gamma) / snr, and 1 where snr is 0
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        case "sample":
            return snr.clamp(max=gamma)
        case unknown:
            raise _unknown_prediction(unknown)


def _unknown_prediction(name: str) -> ConfigError:
    return ConfigError(
        f"the noise scheduler has prediction_type {name!r}; a denoising loss is known for 'epsilon', "
        "'v_prediction' and 'sample'; set one of them in the scheduler's configuration"
    )
