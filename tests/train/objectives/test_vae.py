from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from dreamllm.runtime.seeding import make_generator
from dreamllm.train.objectives import vae
from dreamllm.train.objectives.pictures import to_pixels
from dreamllm.train.objectives.reconstruction import PictureBatch, opponent
from dreamllm.train.objectives.vae import VaeObjective
from dreamllm.train.step import StepResult
from dreamllm.world.render import render
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

MakeVae = Callable[..., VaeObjective]


def axes(chroma_weight: float) -> torch.Tensor:
    """Row c: brightness and two hues of an error in channel c alone."""
    return opponent(torch.eye(3)[:, :, None, None], chroma_weight)[..., 0, 0]


def test_the_axes_of_an_error_are_brightness_and_two_hues() -> None:
    red, green, blue = axes(1.0)

    assert_close(red, torch.tensor([0.57735, 0.70711, -0.40825]), atol=1e-5, rtol=0)
    assert_close(green, torch.tensor([0.57735, -0.70711, -0.40825]), atol=1e-5, rtol=0)
    assert_close(blue, torch.tensor([0.57735, 0.0, 0.81650]), atol=1e-5, rtol=0)


def test_the_axes_are_orthonormal_so_squared_errors_keep_their_sum() -> None:
    assert_close(axes(1.0) @ axes(1.0).T, torch.eye(3), atol=1e-6, rtol=0)
    assert_close(axes(2.0).T @ axes(2.0), torch.diag(torch.tensor([1.0, 4.0, 4.0])), atol=1e-6, rtol=0)


def test_the_divergence_is_that_from_a_standard_normal_a_latent_element(make_vae: MakeVae) -> None:
    objective = make_vae()
    [batch] = objective.data[0]

    terms = objective.losses(batch, make_generator(0))

    with torch.no_grad():
        posterior = objective.module.encode(batch.pixels).latent_dist
        divergence = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))
    assert terms["kl"].count == 2
    assert_close(terms["kl"].sum.detach(), divergence.flatten(1).mean(1).sum(), rtol=1e-4, atol=0)


def test_a_pixel_on_an_object_weighs_what_the_config_says(make_vae: MakeVae) -> None:
    objective = make_vae(foreground_weight=5.0)
    [batch] = objective.data[0]
    everywhere, nowhere = (
        objective.losses(
            PictureBatch(batch.pixels, torch.full_like(batch.is_foreground, value)), make_generator(0)
        )["reconstruction"].sum
        for value in (True, False)
    )

    reconstruction = objective.losses(batch, make_generator(0))["reconstruction"].sum

    assert_close(everywhere, 5 * nowhere)
    assert nowhere < reconstruction < everywhere


def test_two_steps_lower_the_loss_and_move_every_weight(
    make_vae: MakeVae, take_steps: Callable[..., list[StepResult]]
) -> None:
    objective = make_vae()
    before = {name: value.clone() for name, value in objective.module.state_dict().items()}
    [batch] = objective.data[0]

    first, _ = take_steps(objective)

    assert first.counts == {"reconstruction": 2, "kl": 2}
    with torch.no_grad():
        after = objective.losses(batch, make_generator(0))["reconstruction"]
    assert after.sum.item() / after.count < first.terms["reconstruction"]
    still = {n for n, p in objective.module.named_parameters() if torch.equal(before[n], p)}
    assert still == set()


def test_the_exported_vae_gives_latents_of_unit_variance_at_its_scaling_factor(
    make_vae: MakeVae, tmp_path: Path
) -> None:
    objective = make_vae()

    objective.export(tmp_path)

    stock = AutoencoderKL.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    pixels = to_pixels(np.stack([render(sample_scene(rng)) for _ in range(64)]))
    with torch.no_grad():
        latents = stock.encode(pixels).latent_dist.mode() * stock.config.scaling_factor
    assert latents.std().item() == pytest.approx(1.0, rel=0.1)
    assert objective.module.training


class Perfect(VaeObjective):
    def reconstruct(self, scenes: Sequence[Scene]) -> np.ndarray:
        return np.stack([render(scene) for scene in scenes])


def test_the_gate_reads_reconstructions_and_holds_the_bar(
    make_vae: MakeVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "GATE_SCENES", 4)

    untrained, perfect = make_vae().gate(), make_vae(Perfect).gate()

    assert not untrained.passed
    assert "the bar is 0.97 of objects" in untrained.message
    assert perfect.passed
    assert perfect.metrics == dict.fromkeys(("shape", "color", "size", "object", "scene"), 1.0)


def test_a_sample_is_a_sheet_of_truth_and_reconstruction(make_vae: MakeVae, tmp_path: Path) -> None:
    make_vae().sample(tmp_path, 0)

    assert (tmp_path / "pictures.png").is_file()
