"""Checkpoints that two ranks write in the background."""

import json
import logging
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tests.document.full_disk import largest_file
from tests.train.two_ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dreamllm.checkpoint.store import (
    RunState,
    ShardedSaves,
    is_sharded,
    latest,
    load_run,
    read_parts,
    save_run,
)
from dreamllm.errors import CheckpointError, DiskError
from dreamllm.runtime.distributed import joined, ranks_of

pytestmark = pytest.mark.slow

WEIGHT = torch.arange(12.0).reshape(3, 4)  # does not halve: the second rank has one row


def spread() -> torch.Tensor:
    mesh = init_device_mesh("cpu", (2,))
    return distribute_tensor(WEIGHT.clone(), mesh, [Shard(0)], src_data_rank=None)


def state(step: int, weight: torch.Tensor) -> RunState:
    tensors = {"model": {"a.weight": weight, "count": torch.tensor(3)}, "optimizer": {}}
    return RunState(step=step, tensors=tensors, info={"note": "x"})


def save_three(folder: Path) -> list[str | None]:
    """What `latest` finds: before a save is finished, after it, and after two more."""
    ranks = ranks_of()
    with joined(ranks):
        saves, weight = ShardedSaves(folder, ranks, keep=2), spread()
        saves.begin(state(1, weight))
        weight.mul_(-1)  # a step is taken meanwhile
        found = [latest(folder)]
        ranks.wait()
        saves.finish()
        found.append(latest(folder))
        ranks.wait()
        saves.begin(state(2, weight))
        saves.begin(state(3, weight))
        saves.finish()
        found.append(latest(folder))
    return [path and path.name for path in found]


def test_a_checkpoint_appears_when_all_have_written_and_is_that_of_its_moment(tmp_path: Path) -> None:
    for found in on_ranks(2, save_three, tmp_path):
        assert found == [None, "step-00000001", "step-00000003"]

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    saved = load_run(tmp_path / "step-00000003")
    assert (saved.step, saved.info) == (3, {"note": "x"})
    assert is_sharded(tmp_path / "step-00000003")
    assert saved.tensors.keys() == {"model", "optimizer"}
    assert torch.equal(saved.tensors["model"]["a.weight"], -WEIGHT)
    assert int(saved.tensors["model"]["count"]) == 3


def save_one(folder: Path) -> None:
    ranks = ranks_of()
    with joined(ranks):
        saves, weight = ShardedSaves(folder, ranks), spread()
        saves.begin(state(1, weight))
        weight.mul_(-1)
        saves.finish()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    on_ranks(2, save_one, tmp_path)
    whole = tmp_path / "step-00000001"
    assert torch.equal(load_run(whole).tensors["model"]["a.weight"], WEIGHT)
    caplog.set_level(logging.WARNING, "dreamllm")
    for number, name in enumerate(json.loads((whole / "manifest.json").read_text())["files"], start=2):
        damaged = tmp_path / f"step-{number:08d}"
        shutil.copytree(whole, damaged)
        (damaged / name).unlink()
    unmarked = tmp_path / "step-00000099"
    shutil.copytree(whole, unmarked)
    (unmarked / "manifest.json").unlink()

    assert latest(tmp_path) == whole

    assert caplog.text.count("passing over") == number
    with pytest.raises(CheckpointError, match=r"is not whole: manifest\.json"):
        load_run(unmarked)


def read_own_part(folder: Path) -> list[list[float]]:
    with joined(ranks_of()):
        weight = spread()
        weight.zero_()
        read_parts(folder, {"model": {"a.weight": weight}})
        return weight.to_local().tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_read_their_part_of_either_kind(ranks: int, tmp_path: Path) -> None:
    if ranks == 1:
        save_run(tmp_path, state(1, WEIGHT))
    else:
        on_ranks(2, save_one, tmp_path)

    parts = on_ranks(2, read_own_part, tmp_path / "step-00000001")

    assert parts == [WEIGHT[:2].tolist(), WEIGHT[2:].tolist()]


def save_nowhere(folder: Path) -> str:
    with joined(ranks_of()):
        with pytest.raises(DiskError) as caught:
            save_one(folder)
        return str(caught.value)


def test_a_folder_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    first, second = on_ranks(2, save_nowhere, tmp_path / "file")

    assert first == second
    assert re.match(r"cannot write .*step-00000001: ", first)


def settled(saves: ShardedSaves) -> None:
    """Come by until it has something to say, as a run does after every step."""
    for _ in range(10_000):
        saves.settle()


def save_with_a_full_disk(folder: Path, full: int) -> list[str]:
    """What is said of two saves that fail on one rank: one is waited for, the other found out by the way."""
    ranks, told = ranks_of(), []
    with joined(ranks):
        saves, large = ShardedSaves(folder, ranks), torch.ones(2**18)
        saves.begin(state(1, spread()))
        saves.finish()
        for step in (2, 3):
            tensors = {"model": {"mine": distribute_tensor(large, init_device_mesh("cpu", (2,)), [Shard(0)])}}
            with largest_file(2**16) if ranks.rank == full else nullcontext():
                saves.begin(RunState(step=step, tensors=tensors, info={}))
                with pytest.raises(DiskError) as caught:
                    saves.finish() if step == 2 else settled(saves)
            told.append(str(caught.value))
        saves.begin(state(4, spread()))
        saves.finish()
    return told


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_rank_is_one_line_on_all_and_the_next_save_works(
    full: int, tmp_path: Path
) -> None:
    first, second = on_ranks(2, save_with_a_full_disk, tmp_path, full)

    assert first == second
    for step, told in enumerate(first, start=2):
        assert re.match(rf"cannot write .*step-0000000{step}: .*; expected room for 1\.0 MiB", told)
        assert "\n" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000004"]
    assert torch.equal(load_run(tmp_path / "step-00000001").tensors["model"]["a.weight"], WEIGHT)
