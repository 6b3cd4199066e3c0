from pathlib import Path

import torch

from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.clip import ClipObjective
from dreamllm.train.objectives.configs import ClipObjectiveConfig, ScenePhase, VaeObjectiveConfig
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


def test_paths_are_relative_to_the_folder_of_the_run(words_folder: Path) -> None:
    config = ClipObjectiveConfig(
        tokenizer=Path("../tokenizer"),
        hidden_size=16,
        num_layers=1,
        num_text_layers=1,
        num_heads=2,
        phases=PHASES,
    )
    run = RunConfig(name="clip", objective=config, steps=4, optim=OptimConfig(lr=1e-3))

    objective = build_objective(run, words_folder / "clip")

    assert isinstance(objective, ClipObjective)
