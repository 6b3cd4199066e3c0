from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.train.objectives import image_tokenizer
from dreamllm.train.objectives.configs import ImageTokenizerObjectiveConfig, ScenePhase
from dreamllm.train.objectives.image_tokenizer import (
    Codebook,
    ImageTokenizerObjective,
    PatchAnchor,
    code_use,
    fsq_grid,
)
from dreamllm.train.objectives.reconstruction import PictureBatch
from dreamllm.train.step import StepResult
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

CONFIG = ImageTokenizerObjectiveConfig(
    picture_px=16,
    block_out_channels=(8, 8, 8),
    latent_channels=8,
    norm_groups=2,
    num_codes=6,
    code_width=4,
    scenes_per_step=2,
    phases=(ScenePhase(until=1.0, num_objects=(1,)),),
)


def make(config: ImageTokenizerObjectiveConfig = CONFIG) -> ImageTokenizerObjective:
    seed_everything(3)
    return ImageTokenizerObjective(config, steps=10, seed=1)


def some_scenes(num: int) -> list[Scene]:
    rng = np.random.default_rng(2)
    return [sample_scene(rng) for _ in range(num)]


def codebook(vectors: list[list[float]], *, decay: float = 0.5, restart_below: float = 0.0) -> Codebook:
    return Codebook(torch.tensor(vectors), decay=decay, restart_below=restart_below)


def test_a_code_moves_to_the_average_of_the_vectors_that_chose_it() -> None:
    book = codebook([[0.0, 0.0], [10.0, 10.0]])
    latents = torch.tensor([[1.0, 1.0], [3.0, 1.0], [10.0, 8.0]])

    codes = book.nearest(latents)
    book.follow(latents, codes, make_generator(0))

    assert codes.tolist() == [0, 0, 1]
    assert_close(book.counts, torch.tensor([1.0, 0.5]))  # half of 2 uses and of 1
    assert_close(book.vectors, torch.tensor([[2.0, 1.0], [10.0, 8.0]]))

    book.follow(torch.tensor([[4.0, 3.0]]), torch.tensor([0]), make_generator(0))

    # counts: 1/2 + 1/2; sums: half of (2, 1), which was (4, 2) / 2, and half of (4, 3)
    assert_close(book.counts, torch.tensor([1.0, 0.25]))
    assert_close(book.vectors, torch.tensor([[3.0, 2.0], [10.0, 8.0]]))


def test_a_code_that_nobody_chooses_starts_again_at_a_vector_of_the_step() -> None:
    book = codebook([[0.0, 0.0], [99.0, 99.0]], restart_below=0.1)
    latents = torch.tensor([[1.0, 2.0], [1.0, 2.0]])

    book.follow(latents, book.nearest(latents), make_generator(0))

    assert_close(book.vectors, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    assert_close(book.counts, torch.tensor([1.0, 1.0]))


def test_the_nearest_point_of_the_fsq_grid_is_what_rounding_each_number_gives() -> None:
    grid = fsq_grid((5, 3))
    book = Codebook(grid, decay=0.9, restart_below=0.0)
    latents = torch.rand(200, 2, generator=make_generator(0)) * 3 - 1.5

    nearest = grid[book.nearest(latents)]

    steps = torch.tensor([2.0, 1.0])  # points between 0 and 1: halves, and wholes
    assert len(grid) == 15
    assert_close(nearest, (latents * steps).round().clamp(-steps, steps) / steps)


def test_an_anchor_is_linear_in_its_own_patch_and_keeps_most_of_its_variance() -> None:
    pixels = PictureBatch.of(some_scenes(24), 16).pixels
    anchor = PatchAnchor(pixels, patch_px=4, width=6)
    changed = pixels.clone()
    changed[:, :, :4, 4:8] += 0.5

    before, after = anchor(pixels), anchor(changed)

    assert before.shape == (24, 6, 4, 4)
    moved = (before - after).abs().amax(dim=(0, 1)) > 1e-4
    assert moved.nonzero().tolist() == [[0, 1]]
    assert before.square().mean() == pytest.approx(1.0, rel=1e-3)
    flat = before.permute(0, 2, 3, 1).flatten(0, 2)
    covariance = flat.T @ flat / len(flat)
    assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-3, rtol=0)  # principal axes


def test_codes_and_their_picture_are_what_the_stock_model_makes_of_them() -> None:
    tokenizer = make().module.tokenizer()
    pixels = PictureBatch.of(some_scenes(3), 16).pixels

    codes = tokenizer.encode(pixels)

    with torch.no_grad():
        stock = tokenizer.vq_model(pixels).sample
    assert codes.shape == (3, 16)
    assert_close(tokenizer.decode(codes), stock.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_codes_stand_in_raster_order() -> None:
    tokenizer = make().module.tokenizer()
    codes = torch.arange(16)[None] % 6

    with torch.no_grad():
        tokenizer.vq_model.quantize.embedding.weight.copy_(torch.arange(6.0)[:, None].expand(6, 4))
        vectors = tokenizer.vq_model.quantize.get_codebook_entry(codes, (1, 4, 4, 4))

    assert vectors[0, 0].tolist() == (torch.arange(16) % 6).reshape(4, 4).float().tolist()
    with torch.no_grad():
        stock = tokenizer.vq_model.decode(vectors, force_not_quantize=True).sample
    assert_close(tokenizer.decode(codes), stock.clamp(-1, 1))


def test_two_steps_move_every_weight_and_the_codes_and_a_frozen_grid_stays(
    take_steps: Callable[..., list[StepResult]],
) -> None:
    grid = replace(CONFIG, quantizer="fsq", fsq_levels=(3, 2))
    for objective, moves in ((make(), True), (make(grid), False)):
        weights = {n: p.clone() for n, p in objective.module.named_parameters() if p.requires_grad}
        vectors = objective.module.codebook.vectors.clone()

        first, _ = take_steps(objective)

        assert first.counts == {"reconstruction": 2, "commitment": 2, "anchor": 2}
        still = {n for n, p in objective.module.named_parameters() if n in weights and p.equal(weights[n])}
        assert still == set()
        assert torch.equal(vectors, objective.module.codebook.vectors) is not moves


def test_measuring_moves_no_code_and_training_goes_on(take_steps: Callable[..., list[StepResult]]) -> None:
    objective = make()
    vectors = objective.module.codebook.vectors.clone()

    objective.reconstruct(some_scenes(2))
    with torch.no_grad():
        objective.losses(objective.data[0][0], make_generator(0))

    assert torch.equal(objective.module.codebook.vectors, vectors)
    take_steps(objective, num=1)


def test_what_is_exported_is_a_stock_model_with_the_codes_of_training(tmp_path: Path) -> None:
    objective = make()
    scenes = some_scenes(2)

    objective.export(tmp_path)

    stock = ImageTokenizer(VQModel.from_pretrained(tmp_path))
    assert torch.equal(stock.vq_model.quantize.embedding.weight, objective.module.codebook.vectors)
    assert torch.equal(stock.encode(PictureBatch.of(scenes, 16).pixels), objective.codes(scenes))


def test_code_use_counts_what_occurs() -> None:
    used = code_use(torch.tensor([[0, 0, 3, 3]]), num_codes=8)

    assert used == {"codes_used": 0.25, "code_perplexity": pytest.approx(2.0)}


def test_a_gate_that_reads_nothing_is_not_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image_tokenizer, "GATE_SCENES", 4)
    objective = make()

    gate = objective.gate()
    objective.sample(tmp_path, 0)

    assert not gate.passed
    assert "the bar is 0.97 of attributes" in gate.message
    assert (tmp_path / "pictures.png").is_file()


def test_a_codebook_that_is_not_finite_is_refused() -> None:
    vq_model = make().module.tokenizer().vq_model
    with torch.no_grad():
        vq_model.quantize.embedding.weight[2, 1] = torch.nan

    with pytest.raises(ConfigError, match=r"codebook .* \(6 codes of 4 numbers\).* not finite"):
        ImageTokenizer(vq_model)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"picture_px is 18, which 4, the factor"):
        replace(CONFIG, picture_px=18)
    with pytest.raises(ConfigError, match=r"fsq_levels is \(1, 3\)"):
        replace(CONFIG, quantizer="fsq", fsq_levels=(1, 3))
