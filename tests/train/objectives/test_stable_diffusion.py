from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.testing import assert_close
from transformers import CLIPModel, CLIPTextModel

from dreamllm.errors import ConfigError
from dreamllm.runtime.seeding import make_generator
from dreamllm.train.objectives import stable_diffusion
from dreamllm.train.objectives.stable_diffusion import DrawBatch, StableDiffusionObjective
from dreamllm.train.step import StepResult

MakeStableDiffusion = Callable[..., StableDiffusionObjective]
CAPTIONS = ("A small red circle at the top left on a white background.", "A blue star.")


def denoising(objective: StableDiffusionObjective, batch: DrawBatch) -> torch.Tensor:
    return objective.losses(batch, make_generator(5))["denoising"].sum.detach()


def test_captions_are_read_as_the_text_tower_of_the_pair_reads_them(
    make_stable_diffusion: MakeStableDiffusion, pictures_folder: Path
) -> None:
    objective = make_stable_diffusion()
    [batch] = objective.data[0]

    condition = objective.condition(batch.captions)

    pair = CLIPModel.from_pretrained(pictures_folder / "clip" / "clip")
    assert_close(condition, pair.text_model(input_ids=batch.captions).last_hidden_state)


def test_whitening_changes_what_reads_the_caption_and_nothing_else(
    make_stable_diffusion: MakeStableDiffusion,
) -> None:
    plain, white = make_stable_diffusion(whiten=False), make_stable_diffusion(whiten=True)

    pairs = zip(plain.module.named_parameters(), white.module.parameters(), strict=True)
    changed = {name for (name, before), after in pairs if not torch.equal(before, after)}
    assert changed
    assert {tuple(name.split(".")[-3:-1]) for name in changed} == {("attn2", "to_k"), ("attn2", "to_v")}


def test_only_the_levels_that_are_told_to_attend_read_the_caption(
    make_stable_diffusion: MakeStableDiffusion,
) -> None:
    unet = make_stable_diffusion(has_attention=(False, True)).unet

    readers = {name.split(".attentions")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert readers == {"down_blocks.1", "mid_block", "up_blocks.0"}
    with pytest.raises(ConfigError, match="has_attention has 1 entries"):
        make_stable_diffusion(has_attention=(True,))


@pytest.mark.parametrize(("share", "expected"), [(1.0, 2), (0.0, 0)])
def test_the_share_of_empty_captions_is_what_the_config_says(
    make_stable_diffusion: MakeStableDiffusion, share: float, expected: int
) -> None:
    objective = make_stable_diffusion(empty_caption=share)

    [batch] = objective.data[0]

    words = batch.captions != objective.tokenizer.eos_id
    assert (words.sum(1) == 1).sum() == expected  # BOS alone


def test_only_the_ratio_of_weights_within_a_picture_matters(
    make_stable_diffusion: MakeStableDiffusion,
) -> None:
    objective = make_stable_diffusion()
    [batch] = objective.data[0]
    everywhere, nowhere = (
        DrawBatch(batch.pixels, torch.full_like(batch.is_foreground, value), batch.captions)
        for value in (True, False)
    )

    loss = denoising(objective, batch)

    assert_close(denoising(objective, everywhere), denoising(objective, nowhere))
    assert abs(loss - denoising(objective, nowhere)) > 1e-4


def test_steps_teach_the_unet_and_the_text_tower_and_leave_the_vae(
    make_stable_diffusion: MakeStableDiffusion, take_steps: Callable[..., list[StepResult]]
) -> None:
    objective = make_stable_diffusion()
    before = {name: value.clone() for name, value in objective.decoder.vae.state_dict().items()}

    results = take_steps(objective)

    assert [result.counts for result in results] == [{"denoising": 2}] * 2
    assert all(parameter.grad is None for parameter in objective.decoder.vae.parameters())
    assert all(torch.equal(before[n], value) for n, value in objective.decoder.vae.state_dict().items())
    assert all(parameter.grad is not None for parameter in objective.unet.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in objective.text_encoder.parameters() if p.requires_grad) > 5
    assert [(g.name, g.lr_scale) for g in objective.parameter_groups()] == [("unet", 1.0), ("text", 0.5)]


def test_pictures_are_drawn_from_captions_and_a_seed(
    make_stable_diffusion: MakeStableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "SAMPLE_STEPS", 2)
    objective = make_stable_diffusion()

    with torch.no_grad():
        pictures, same, other = (objective.draw(CAPTIONS, seed=seed) for seed in (1, 1, 2))

    assert pictures.shape == (2, 64, 64, 3)
    assert pictures.dtype == "uint8"
    assert (pictures == same).all()
    assert (pictures != other).any()
    assert objective.unet.training


def test_the_gate_asks_what_wrong_captions_cost(
    make_stable_diffusion: MakeStableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained U-Net hardly listens: wrong captions cost it what right ones do."""
    monkeypatch.setattr(stable_diffusion, "SAMPLE_STEPS", 2)
    monkeypatch.setattr(stable_diffusion, "GATE_SCENES", 4)

    with torch.no_grad():
        result = make_stable_diffusion().gate()

    gaps = {name: value for name, value in result.metrics.items() if name.startswith("gap_")}
    assert gaps.keys() == {"gap_shape", "gap_color", "gap_size", "gap_place", "gap_background"}
    assert all(value == pytest.approx(1.0, abs=0.1) for value in gaps.values())
    assert not result.passed
    assert {"all_correct_1", "all_correct_2", "all_correct_3"} <= result.metrics.keys()


def test_the_exported_parts_load_with_their_own_libraries(
    make_stable_diffusion: MakeStableDiffusion, tmp_path: Path
) -> None:
    objective = make_stable_diffusion()

    objective.export(tmp_path)

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), objective.unet.parameters(), strict=True))
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert vae.config.scaling_factor == objective.decoder.vae.config.scaling_factor
    assert DDPMScheduler.from_pretrained(tmp_path / "scheduler").config.prediction_type == "v_prediction"
    tower = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    [batch] = objective.data[0]
    assert_close(tower(batch.captions).last_hidden_state, objective.condition(batch.captions))
