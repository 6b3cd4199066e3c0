import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.losses.denoising import denoising_error, denoising_target, min_snr_weight


def scheduler(prediction_type):
    """Signal shares (alpha squared) of 0.9, 0.5 and 0.1: signal-to-noise ratios of 9, 1 and 1/9."""
    return DDPMScheduler(
        num_train_timesteps=3, trained_betas=[0.1, 1 - 0.5 / 0.9, 0.8], prediction_type=prediction_type
    )


def test_targets_are_the_noise_the_velocity_and_the_picture():
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    timestep = torch.tensor([1])

    targets = [
        denoising_target(scheduler(kind), latents, noise, timestep).item()
        for kind in ("epsilon", "v_prediction", "sample")
    ]

    assert targets == pytest.approx([3.0, 0.5**0.5 * 3 - 0.5**0.5 * 2, 2.0])


def test_the_velocity_undoes_the_noising():
    torch.manual_seed(0)
    latents, noise, timesteps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.arange(3)
    schedule = scheduler("v_prediction")
    alpha = schedule.alphas_cumprod.sqrt().view(3, 1, 1, 1)
    sigma = (1 - schedule.alphas_cumprod).sqrt().view(3, 1, 1, 1)

    velocity = denoising_target(schedule, latents, noise, timesteps)

    assert_close(alpha * schedule.add_noise(latents, noise, timesteps) - sigma * velocity, latents)


def test_the_error_is_the_mean_square_of_each_picture():
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 0.0]]], [[[2.0, 4.0]]]])

    assert_close(denoising_error(prediction, target), torch.tensor([5.0, 10.0]))


def test_a_spatial_weight_makes_a_weighted_mean():
    prediction, target = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)

    weighted = denoising_error(prediction, target, spatial_weight=torch.tensor([[[[3.0, 1.0]]]]))

    assert weighted.item() == pytest.approx((3 * 1 + 1 * 9) / 4)
    even = denoising_error(prediction, target, spatial_weight=torch.full((1, 1, 1, 2), 7.0))
    assert_close(even, denoising_error(prediction, target))


def test_half_precision_predictions_are_compared_in_float32():
    prediction = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)

    error = denoising_error(prediction, torch.zeros(1, 1, 2, 2))

    assert error.item() == pytest.approx(90_000)  # beyond the largest float16


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", [5 / 9, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, (1 / 9) / (10 / 9)]),
        ("sample", [5.0, 1.0, 1 / 9]),
    ],
)
def test_min_snr_weights_are_those_worked_out_by_hand_for_gamma_five(prediction_type, expected):
    weights = min_snr_weight(scheduler(prediction_type), torch.arange(3), gamma=5.0)

    assert weights.tolist() == pytest.approx(expected, rel=1e-4)


def test_an_unknown_prediction_type_is_refused():
    schedule = DDPMScheduler(num_train_timesteps=3)
    schedule.register_to_config(prediction_type="flow")

    with pytest.raises(ConfigError, match="prediction_type 'flow'"):
        denoising_target(schedule, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    with pytest.raises(ConfigError, match="prediction_type 'flow'"):
        min_snr_weight(schedule, torch.tensor([0]), gamma=5.0)
