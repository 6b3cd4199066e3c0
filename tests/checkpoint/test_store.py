import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.document.full_disk import largest_file

from dreamllm.checkpoint.store import RunState, latest, load_run, save_run
from dreamllm.errors import CheckpointError, DiskError


def state_of(step: int, *, size: int = 3) -> RunState:
    tensors = {
        "model": {"a": torch.full((size,), float(step)), "b": torch.arange(6).reshape(2, 3).T},
        "ema": {"a": torch.tensor(0.1 * step, dtype=torch.float64)},
        "nothing": {},
    }
    return RunState(step=step, tensors=tensors, info={"config": {"lr": 2e-5, "betas": [0.9, 0.95]}})


def test_what_was_saved_is_read_back_to_the_bit(tmp_path: Path) -> None:
    state = state_of(7)

    loaded = load_run(save_run(tmp_path, state))

    assert loaded.step == 7
    assert loaded.info == state.info
    assert loaded.tensors.keys() == state.tensors.keys()
    for name, tensors in state.tensors.items():
        assert loaded.tensors[name].keys() == tensors.keys()
        assert all(torch.equal(loaded.tensors[name][key], value) for key, value in tensors.items())
        assert all(loaded.tensors[name][key].dtype == value.dtype for key, value in tensors.items())


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    state = RunState(step=1, tensors={"model": {"all": base, "half": base[:2]}}, info={})

    loaded = load_run(save_run(tmp_path, state)).tensors["model"]

    assert loaded["all"].tolist() == [0, 1, 2, 3]
    assert loaded["half"].tolist() == [0, 1]


def test_the_newest_whole_checkpoint_is_found_and_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path / "not there") is None

    for step in (900, 1000, 99_999_999, 100_000_000):
        path = save_run(tmp_path, state_of(step), keep=2)

    assert latest(tmp_path) == path
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_run(tmp_path, state_of(5, size=2))

    path = save_run(tmp_path, state_of(5, size=9))

    assert load_run(path).tensors["model"]["a"].shape == (9,)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_refused(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = save_run(tmp_path, state_of(1)), save_run(tmp_path, state_of(2))
    file = bad / "model.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text("{")

    assert latest(tmp_path) == good
    assert "passing over the checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match=r"step-00000002 is not whole: .*expected the files"):
        load_run(bad)


def test_a_damaged_later_checkpoint_does_not_crowd_out_the_one_just_saved(tmp_path: Path) -> None:
    save_run(tmp_path, state_of(1))
    (save_run(tmp_path, state_of(9)) / "state.json").unlink()

    path = save_run(tmp_path, state_of(2), keep=1)

    assert latest(tmp_path) == path


def test_a_checkpoint_of_another_format_says_so(tmp_path: Path) -> None:
    path = save_run(tmp_path, state_of(1))
    manifest = json.loads((path / "manifest.json").read_text()) | {"format": 99}
    (path / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(CheckpointError, match="its format is 99, this version reads 1"):
        load_run(path)


def test_a_full_disk_leaves_the_earlier_checkpoint_and_one_clear_error(tmp_path: Path) -> None:
    """The operating system refuses to let a file grow over 1 MiB, as it refuses on a full disk."""
    first = save_run(tmp_path, state_of(1))
    with (
        largest_file(2**20),
        pytest.raises(DiskError, match=r"write .*step-00000002: File too large; expected room for 4\.0 MiB"),
    ):
        save_run(tmp_path, state_of(2, size=2**20), keep=1)

    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000001"]
    assert load_run(first).step == 1


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_is_full_at_the_last_moment_leaves_the_earlier_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks take bytes into memory and find no room for them later."""
    first = save_run(tmp_path, state_of(1))

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(DiskError, match="step-00000002: No space left on device"):
            save_run(tmp_path, state_of(2), keep=1)

    assert list(tmp_path.iterdir()) == [first]
    assert load_run(first).step == 1


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(DiskError, match=r"cannot write .*step-00000001: "):
        save_run(tmp_path / "run", state_of(1))


SAVE_FOREVER = """
import itertools, sys
from pathlib import Path
import torch
from dreamllm.checkpoint.store import RunState, save_run
for step in itertools.count(1):
    tensors = {f"part{i}": {"a": torch.full((20_000,), float(step))} for i in range(20)}
    save_run(Path(sys.argv[1]), RunState(step=step, tensors=tensors, info={}), keep=2)
"""


def test_a_process_killed_in_the_middle_of_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], env=environment)
    try:
        unfinished = _freeze_in_the_middle_of_a_save(child, tmp_path)
    finally:
        child.kill()
        child.wait()

    path = latest(tmp_path)

    assert path is not None
    loaded = load_run(path)
    assert unfinished.name.endswith(f"{loaded.step + 1:08d}")
    assert all(tensors["a"].eq(loaded.step).all() for tensors in loaded.tensors.values())
    save_run(tmp_path, state_of(loaded.step + 1))
    assert not unfinished.exists()


def _freeze_in_the_middle_of_a_save(child: subprocess.Popen[bytes], folder: Path) -> Path:
    """Stop the process until it is found with a part of a later checkpoint written; the unfinished folder."""
    deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
    while time.monotonic() < deadline:
        assert child.poll() is None
        if any(folder.glob("step-*")):
            os.kill(child.pid, signal.SIGSTOP)
            for unfinished in folder.glob(".unfinished-*"):
                if 0 < len(list(unfinished.iterdir())) < 20:
                    return unfinished
            os.kill(child.pid, signal.SIGCONT)
        time.sleep(0.003)
    raise AssertionError("the process was never seen in the middle of a save")


def test_a_copy_of_a_checkpoint_elsewhere_still_loads(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run", state_of(3))

    shutil.copytree(path, tmp_path / "copy")

    assert load_run(tmp_path / "copy").step == 3
