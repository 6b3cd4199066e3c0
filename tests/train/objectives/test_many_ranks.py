"""Two processes compute what one does: losses, weights, checkpoints and exports."""

import importlib.util
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tests.document.full_disk import largest_file
from tests.train.two_ranks import on_ranks

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.checkpoint.store import is_sharded, latest, load_run
from dreamllm.config import to_yaml
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.errors import DreamLLMError, TrainingError
from dreamllm.models.trainable import Trainable
from dreamllm.runtime.distributed import ALONE, Ranks, joined, ranks_of
from dreamllm.runtime.seeding import seed_everything
from dreamllm.train.loop import train
from dreamllm.train.metrics import read_metrics
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.objectives.objective import GateResult
from dreamllm.train.run_config import OptimConfig, ParallelConfig, RunConfig
from dreamllm.train.run_state import Run

pytestmark = pytest.mark.slow

PICTURES = {"draw_pair": 1.0, "read_pair": 0.5, "text_vqa": 2.0}


class Quick(DreamLLMObjective):
    """Shows and measures nothing, which takes long at any size."""

    def sample(self, path: Path, step: int) -> None:
        (path / "nothing.txt").write_text(f"step {step}")

    def gate(self) -> GateResult:
        weight = self.module.language_model.get_input_embeddings().weight
        return GateResult(passed=True, metrics={"size": float(weight.abs().sum())}, message="measured")


def configured(parts: PartsConfig, **changes: Any) -> RunConfig:
    """Stage II on few documents a step, so that a rank may have no picture, or no document."""
    source = WorldSourceConfig(documents=PICTURES, num_objects=(1,))
    objective = DreamLLMObjectiveConfig(
        parts=parts,
        train=Trainable(language_model=True),
        phases=(PhaseConfig(sources=(source,)),),
        documents_per_step=3,
        row_length=320,
        rows_per_micro_batch=1,
        condition_dropout=0.3,
        noises_per_image=2,
    )
    settings: dict[str, Any] = {
        "name": "stage2",
        "objective": objective,
        "steps": 6,
        "optim": OptimConfig(lr=1e-3, warmup_ratio=0.0, clip_norm=0.5),
        "seed": 5,
        "device": "cpu",
        "log_every": 1,
        "save_every": 2,
        "ema_decay": 0.9,
        **changes,
    }
    return RunConfig(**settings)


def built(config: RunConfig) -> Quick:
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    seed_everything(8)
    return Quick(config.objective, steps=config.steps, seed=8)


def run(config: RunConfig, folder: Path) -> str:
    return train(config, built(config), folder).status


def losses(folder: Path) -> dict[int, list[float]]:
    return {
        record["step"]: [record["loss"], record["grad_norm"]]
        for record in read_metrics(folder / "metrics.jsonl")
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = latest(folder / "checkpoints")
    assert path is not None
    return {
        f"{part}/{name}": tensor
        for part, tensors in load_run(path).tensors.items()
        for name, tensor in tensors.items()
    }


def assert_same(found: Path, expected: Path) -> None:
    for step, values in losses(expected).items():
        assert losses(found)[step] == pytest.approx(values, rel=1e-5), step
    assert weights(found).keys() == weights(expected).keys()
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def one(parts: PartsConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(configured(parts), folder)
    return folder


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted((folder / "model").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_two_ranks_train_as_one_does(parts: PartsConfig, one: Path, tmp_path: Path) -> None:
    assert on_ranks(2, run, configured(parts), tmp_path) == ["finished", "finished"]

    assert_same(tmp_path, one)
    found, expected = exported(tmp_path), exported(one)
    assert found.keys() == expected.keys()
    assert len(found) > 100
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-5, msg=name)
    assert is_sharded(tmp_path / "checkpoints" / "step-00000006")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000006",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in one.iterdir())


def test_a_rank_without_pictures_or_documents_is_among_the_steps(parts: PartsConfig) -> None:
    """What the test above relies on: ranks have uneven numbers of pictures, one has none in some step."""
    objective = built(configured(parts))

    shares = [objective.data.part(rank, num_ranks=2) for rank in range(2)]

    pictures = [[sum(b.num_targets for b in share[step]) for share in shares] for step in range(6)]
    batches = [[len(share[step]) for share in shares] for step in range(6)]
    assert any(min(step) == 0 < max(step) for step in pictures)
    assert any(step[0] != step[1] for step in batches)


class Stopped(Quick):
    """The second rank, or the only one, is told to stop in the course of the run."""

    calls = 0

    def losses(self, micro_batch: Any, generator: torch.Generator) -> Any:
        self.calls += 1
        if self.calls == 6 and ranks_of().rank == ranks_of().size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(micro_batch, generator)


def run_until_told(config: RunConfig, folder: Path) -> tuple[str, int]:
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    seed_everything(8)
    result = train(config, Stopped(config.objective, steps=config.steps, seed=8), folder)
    return result.status, result.step


def test_a_run_stopped_on_two_ranks_goes_on_alone(parts: PartsConfig, one: Path, tmp_path: Path) -> None:
    first, second = on_ranks(2, run_until_told, configured(parts), tmp_path)

    assert first == second
    assert first[0] == "interrupted"
    assert 0 < first[1] < 6
    assert run(configured(parts), tmp_path) == "finished"
    assert_same(tmp_path, one)


def test_a_run_stopped_alone_goes_on_on_two_ranks(parts: PartsConfig, one: Path, tmp_path: Path) -> None:
    status, step = run_until_told(configured(parts), tmp_path)

    assert (status, step < 6) == ("interrupted", True)
    parallel = ParallelConfig(shard="hybrid", replicas=2)
    assert on_ranks(2, run, replace(configured(parts), parallel=parallel), tmp_path) == ["finished"] * 2
    assert_same(tmp_path, one)


def memory(config: RunConfig, ranks: Ranks) -> int:
    """Bytes of what trains and of the optimizer's memory of it that are here after a step."""
    run = Run.start(config, built(config), torch.device("cpu"), ranks)
    run.optimizer.zero_grad()
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    tensors = [p for group in run.optimizer.param_groups for p in group["params"]]
    tensors += [v for state in run.optimizer.state.values() for v in state.values()]
    return sum(local.nbytes for local in (getattr(t, "_local_tensor", t) for t in tensors))


def memory_here(config: RunConfig) -> int:
    with joined(ranks_of()):
        return memory(config, ranks_of())


def test_two_ranks_hold_half_each(parts: PartsConfig) -> None:
    alone = memory(configured(parts), ALONE)

    assert all(0.45 * alone < here <= 0.55 * alone for here in on_ranks(2, memory_here, configured(parts)))


class Broken(Quick):
    """The loss of the second rank is no number from its third micro-batch on."""

    calls = 0

    def losses(self, micro_batch: Any, generator: torch.Generator) -> Any:
        self.calls += 1
        terms = dict(super().losses(micro_batch, generator))
        if self.calls == 3 and ranks_of().rank == 1:
            terms["next_token"] = replace(terms["next_token"], sum=terms["next_token"].sum * torch.nan)
        return terms


def run_broken(config: RunConfig, folder: Path) -> str:
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    seed_everything(8)
    with pytest.raises(TrainingError) as caught:
        train(config, Broken(config.objective, steps=config.steps, seed=8), folder)
    return str(caught.value)


def test_a_loss_that_is_no_number_on_one_rank_stops_all(parts: PartsConfig, tmp_path: Path) -> None:
    first, second = on_ranks(2, run_broken, configured(parts), tmp_path)

    assert first == second
    assert "is not finite: sums {'next_token': nan" in first


def run_badly(config: RunConfig, folder: Path, limit: int | None) -> str:
    """What stops a run whose main rank lacks a tracker, or has a full disk."""
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    seed_everything(8)
    objective = Quick(config.objective, steps=config.steps, seed=8)
    is_full = limit is not None and ranks_of().is_main
    with largest_file(limit or 0) if is_full else nullcontext(), pytest.raises(DreamLLMError) as caught:
        train(config, objective, folder)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_tracker_that_is_not_installed_stops_all_ranks(parts: PartsConfig, tmp_path: Path) -> None:
    if importlib.util.find_spec("trackio") is not None:
        pytest.skip("it is installed")

    first, second = on_ranks(2, run_badly, configured(parts, trackers=("trackio",)), tmp_path, None)

    assert first == second
    assert first.startswith("MissingExtraError: the run is to be tracked by trackio")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_full_disk_of_the_main_rank_stops_all(parts: PartsConfig, tmp_path: Path) -> None:
    config = configured(parts, save_every=100, tensorboard=False)
    limit = len(to_yaml(config).encode()) + 100

    first, second = on_ranks(2, run_badly, replace(config, steps=100), tmp_path, limit)

    assert first == second
    assert first.startswith(f"DiskError: cannot write {tmp_path / 'metrics.jsonl'}: File too large; ")


class Watching(Quick):
    """Looks for the checkpoint of step 3 in step 5, until it is written, and in step 6."""

    folder = Path()
    found: ClassVar[list[bool]] = []

    def losses(self, micro_batch: Any, generator: torch.Generator) -> Any:
        step = len(read_metrics(self.folder / "metrics.jsonl")) if ranks_of().is_main else 0
        checkpoints = self.folder / "checkpoints"
        if step == 4:
            for _ in range(200):
                time.sleep(0.05)
                if list(checkpoints.glob("*/shards/.metadata")):
                    break
            time.sleep(0.5)
        if step == 5:
            self.found.append((checkpoints / "step-00000003").is_dir())
        return super().losses(micro_batch, generator)


def run_watching(config: RunConfig, folder: Path) -> list[bool]:
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    seed_everything(8)
    objective = Watching(config.objective, steps=config.steps, seed=8)
    objective.folder = folder
    train(config, objective, folder)
    return Watching.found


def test_a_checkpoint_appears_while_the_run_goes_on(parts: PartsConfig, tmp_path: Path) -> None:
    first, _ = on_ranks(2, run_watching, replace(configured(parts), save_every=3), tmp_path)

    assert first
    assert all(first)
