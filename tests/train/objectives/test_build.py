from pathlib import Path

import torch

from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.configs import ScenePhase, StableDiffusionObjectiveConfig, VaeObjectiveConfig
from dreamllm.train.objectives.stable_diffusion import StableDiffusionObjective
from dreamllm.train.objectives.vae import VaeObjective
from dreamllm.train.run_config import OptimConfig, RunConfig

PHASES = (ScenePhase(until=1.0, num_objects=(1,)),)


def vae_run(seed: int) -> RunConfig:
    config = VaeObjectiveConfig(
        block_out_channels=(4, 4), norm_groups=2, latent_channels=2, scenes_per_step=2, phases=PHASES
    )
    return RunConfig(name="vae", objective=config, steps=4, optim=OptimConfig(lr=1e-3), seed=seed)


def test_weights_and_data_follow_from_the_seed_of_the_run(tmp_path: Path) -> None:
    first, same, other = (build_objective(vae_run(seed), tmp_path) for seed in (1, 1, 2))

    def weights(objective: object) -> torch.Tensor:
        assert isinstance(objective, VaeObjective)
        return torch.cat([parameter.flatten() for parameter in objective.module.parameters()])

    assert torch.equal(weights(first), weights(same))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(first.data[2][0].pixels, same.data[2][0].pixels)
    assert not torch.equal(first.data[2][0].pixels, other.data[2][0].pixels)


def test_paths_are_relative_to_the_folder_of_the_run(pictures_folder: Path) -> None:
    config = StableDiffusionObjectiveConfig(
        vae=Path("../vae"),
        clip=Path("../clip/clip"),
        tokenizer=Path("../clip/tokenizer"),
        block_out_channels=(8, 16),
        attention_head_dim=2,
        norm_groups=4,
        phases=PHASES,
    )
    run = RunConfig(name="draw", objective=config, steps=4, optim=OptimConfig(lr=1e-3))

    objective = build_objective(run, pictures_folder / "stable_diffusion")

    assert isinstance(objective, StableDiffusionObjective)
