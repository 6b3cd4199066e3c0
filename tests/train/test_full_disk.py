"""A run whose disk is full stops with one line, whatever it was writing, and goes on when there is room."""

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.document.full_disk import largest_file
from tests.train.line_objective import LineObjective, line_run
from tests.train.test_loop import Killed, KilledAt, final_state

from dreamllm.checkpoint.store import load_run
from dreamllm.config import to_yaml
from dreamllm.errors import DiskError
from dreamllm.train.loop import train

RUN = line_run(steps=6, save_every=2, sample_every=3)


class LongWinded(LineObjective):
    """Has large samples, or a large result."""

    def __init__(self, *, sample_bytes: int = 0, export_bytes: int = 0) -> None:
        super().__init__()
        self.sample_bytes, self.export_bytes = sample_bytes, export_bytes

    def sample(self, path: Path, step: int) -> None:
        super().sample(path, step)
        (path / "noise").write_bytes(bytes(self.sample_bytes))

    def export(self, path: Path) -> None:
        super().export(path)
        torch.save(torch.zeros(self.export_bytes, dtype=torch.uint8), path / "noise.pt")


def stopped(objective: LineObjective, folder: Path, limit: int) -> str:
    with largest_file(limit), pytest.raises(DiskError) as caught:
        train(RUN, objective, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "limit", "objective"),
    [
        ("config.yaml", 100, LongWinded()),
        ("checkpoints/step-00000002", len(to_yaml(RUN)) + 100, LongWinded()),
        ("samples/step-00000003", 20_000, LongWinded(sample_bytes=30_000)),
        ("model", 20_000, LongWinded(export_bytes=30_000)),
    ],
)
def test_a_run_names_what_it_could_not_write_and_goes_on_to_the_same_end(
    name: str, limit: int, objective: LongWinded, tmp_path: Path
) -> None:
    train(RUN, LongWinded(), tmp_path / "whole")

    told = stopped(objective, tmp_path / "run", limit)

    assert told.startswith(f"cannot write {tmp_path / 'run' / name}: ")
    assert "make room" in told
    assert not list((tmp_path / "run").rglob(".unfinished-*"))
    train(RUN, LongWinded(), tmp_path / "run")
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "run" / "model")) == ["line.pt", "noise.pt"]


def test_a_line_of_metrics_that_is_cut_short_is_written_again(tmp_path: Path) -> None:
    train(RUN, LongWinded(), tmp_path / "whole")
    with pytest.raises(Killed):
        train(RUN, KilledAt(4), tmp_path / "run")
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size

    # the fifth line does not fit; config.yaml does, and step 6 is not come to
    told = stopped(LongWinded(), tmp_path / "run", size + 20)

    assert told.startswith(f"cannot write {tmp_path / 'run' / 'metrics.jsonl'}: ")
    train(RUN, LongWinded(), tmp_path / "run")
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_an_earlier_result_and_checkpoint_stand_when_the_disk_fills_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RUN, LongWinded(), tmp_path)
    before = (tmp_path / "model" / "line.pt").read_bytes()
    moved = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == ".unfinished-model":
            raise OSError(errno.ENOSPC, "No space left on device")
        moved(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(DiskError, match=r"cannot write .*model: No space"):
            train(RUN, LongWinded(), tmp_path)

    assert (tmp_path / "model" / "line.pt").read_bytes() == before
    assert load_run(tmp_path / "checkpoints" / "step-00000006").step == 6
