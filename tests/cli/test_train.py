"""`dreamllm train`: verdicts, exit statuses, and what is on disk afterwards."""

import json
from pathlib import Path

import pytest

from dreamllm.cli import main

SMALL = [
    "steps=2",
    "objective.scenes_per_step=1",
    "objective.block_out_channels=[8, 8, 8, 8, 8]",
    "tensorboard=false",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose gate nobody could pass."""
    folder = tmp_path_factory.mktemp("train") / "vae"
    assert main(["train", "nano/vae", *SMALL, "objective.gate_accuracy=2", "--out", str(folder)]) == 1
    return folder


def test_a_run_leaves_its_config_gate_and_result(out: Path) -> None:
    gate = json.loads((out / "gate.json").read_text())

    assert gate["passed"] is False
    assert (out / "config.yaml").is_file()
    assert (out / "model" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_gate_that_is_not_passed_is_said_with_what_to_do(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["train", "nano/vae", *SMALL, "objective.gate_accuracy=2", "--out", str(out)])

    shown = capsys.readouterr().out
    assert status == 1
    assert "stopped: the gate of nano-vae is not passed" in shown
    assert "--ignore-gates" in shown
    assert "skipped" in shown


def test_ignored_gates_end_well(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "nano/vae", *SMALL, "objective.gate_accuracy=2", "--out", str(out)]

    status = main([*arguments, "--ignore-gates"])

    assert status == 0
    assert f"the result is in {out / 'model'}" in capsys.readouterr().out


def test_a_family_writes_its_record(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"vae.{override}" for override in (*SMALL, "objective.gate_accuracy=0")]

    status = main(["train", "nano", *overrides, "--only", "vae", "--out", str(tmp_path)])

    (record,) = json.loads((tmp_path / "family.json").read_text())["runs"]
    assert status == 0
    assert (record["name"], record["status"], record["steps"]) == ("vae", "finished", 2)
    assert record["gate"]["metrics"].keys() == {"shape", "color", "size", "object", "scene"}
    assert str(tmp_path / "family.json") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny/vea"], "did you mean 'tiny/vae'?"),
        (["nano/vae", "stepz=3"], "did you mean 'steps'?"),
        (["nano/vae", "--only", "vae"], "--only vae chooses a run of a family"),
        (["nano", "--only", "vea"], "the family has no run 'vea'"),
        (["nano", "steps=3"], "names no run of the family 'nano'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["train", *arguments, "--out", str(tmp_path / "out")])

    shown = capsys.readouterr().err
    assert status == 2
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_profile_traces_a_run(tmp_path: Path) -> None:
    settings = [*SMALL, "steps=4", "objective.gate_accuracy=0"]

    assert main(["train", "nano/vae", *settings, "--profile", "--out", str(tmp_path)]) == 0

    assert (tmp_path / "profile" / "trace.json").is_file()


def test_profile_asks_which_run_of_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nano", "--profile", "--out", str(tmp_path)]) == 2

    assert "--profile traces one run, but nano is a family" in capsys.readouterr().err
