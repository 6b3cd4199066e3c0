import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.line_objective import LineConfig, LineObjective, Points, line_run

from dreamllm.checkpoint.store import latest, load_run
from dreamllm.config import load_config
from dreamllm.errors import CheckpointError, ConfigError, TrainingError
from dreamllm.losses.total import Term
from dreamllm.train.loop import pick_device, train
from dreamllm.train.metrics import read_metrics
from dreamllm.train.run_config import OptimConfig
from dreamllm.train.run_state import Run

# Python 3.12 and later warn of any fork beside threads; loader workers fork on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Killed(BaseException):
    """Stands for a process that is gone: nothing in the package catches it."""


class KilledAt(LineObjective):
    """Dies in the losses of a step, as a machine does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        if micro_batch.ids[0] == f"point-{self.step}-3":
            raise Killed
        return super().losses(micro_batch, generator)


class SignalledAt(LineObjective):
    """Someone sends a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self.step, self.number = step, number

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        if micro_batch.ids[0] == f"point-{self.step}-0":
            os.kill(os.getpid(), self.number)
        return super().losses(micro_batch, generator)


def final_state(folder: Path) -> dict[str, Any]:
    """Every tensor and number of the newest checkpoint, and the metrics without times."""
    path = latest(folder / "checkpoints")
    assert path is not None
    state = load_run(path)
    timed = ("seconds", "error_per_s", "size_per_s", "data_wait", "memory_gib")
    return {
        "step": state.step,
        "tensors": {f"{f}/{n}": v.tolist() for f, ts in state.tensors.items() for n, v in ts.items()},
        "info": {key: value for key, value in state.info.items() if key != "config"},
        "metrics": [
            {key: value for key, value in record.items() if key not in timed}
            for record in read_metrics(folder / "metrics.jsonl")
        ],
    }


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"precision": "float16"}, {"num_workers": 1}])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = line_run(steps=6, save_every=3, sample_every=2, **changes)
    train(config, LineObjective(), tmp_path / "whole")

    with pytest.raises(Killed):
        train(config, KilledAt(5), tmp_path / "killed")
    torch.rand(3)
    killed = final_state(tmp_path / "killed")
    result = train(config, LineObjective(), tmp_path / "killed", resume="must")

    assert killed["step"] == 3
    assert len(killed["metrics"]) == 5
    assert result.status == "finished"
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")
    for name in ("gate.json", "samples/step-00000004/line.txt", "samples/step-00000006/line.txt"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_run_learns_the_line_and_passes_its_gate(tmp_path: Path) -> None:
    objective = LineObjective()
    before = objective.gate()

    result = train(line_run(steps=150, log_every=50, ema_decay=0.9), objective, tmp_path)

    assert (result.status, result.step) == ("finished", 150)
    assert result.gate is not None
    assert not before.passed
    assert result.gate.passed, result.gate.message
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [50, 100, 150]
    assert json.loads((tmp_path / "gate.json").read_text())["metrics"] == result.gate.metrics


def test_the_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1.0, warmup_ratio=0.5, schedule="linear", final_lr_ratio=0.2)

    train(line_run(steps=4, optim=optim), LineObjective(), tmp_path)

    rates = [record["lr"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.6])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_signal_finishes_the_step_saves_and_says_so(
    number: signal.Signals, num_workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = line_run(steps=6, num_workers=num_workers)
    before = signal.getsignal(number)

    result = train(config, SignalledAt(2, number), tmp_path)

    assert (result.status, result.step, result.gate, result.model) == ("interrupted", 3, None, None)
    assert load_run(result.checkpoint).step == 3
    assert f"interrupted by {number.name} after step 3 of 6" in caplog.text
    assert signal.getsignal(number) is before
    train(line_run(steps=6), LineObjective(), tmp_path / "whole")
    assert train(config, LineObjective(), tmp_path).status == "finished"
    assert final_state(tmp_path) == final_state(tmp_path / "whole")


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    class Impatient(LineObjective):
        def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().losses(micro_batch, generator)

    with pytest.raises(KeyboardInterrupt):
        train(line_run(), Impatient(), tmp_path)


def test_a_run_outside_the_main_thread_works(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(line_run(steps=1), LineObjective(), tmp_path))
    )

    thread.start()
    thread.join()

    assert results[0].status == "finished"


def test_a_bad_document_stops_the_run_and_the_checkpoint_before_it_is_sound(tmp_path: Path) -> None:
    config = line_run(steps=6, save_every=2, objective=LineConfig(bad_step=4))

    with pytest.raises(TrainingError, match=r"loss of step 4 is not finite.*point-4-4"):
        train(config, LineObjective(LineConfig(bad_step=4)), tmp_path)

    state = final_state(tmp_path)
    assert state["step"] == 4
    assert len(state["metrics"]) == 4


def test_export_and_gate_see_the_average_and_training_does_not(tmp_path: Path) -> None:
    averaged, plain = LineObjective(), LineObjective()

    result = train(line_run(ema_decay=0.5), averaged, tmp_path / "averaged")
    train(line_run(), plain, tmp_path / "plain")

    assert result.model is not None
    exported = torch.load(result.model / "line.pt")["head.weight"]
    state = load_run(result.checkpoint)
    assert torch.equal(exported, state.tensors["ema"]["head.weight"])
    assert not torch.equal(exported, state.tensors["model"]["head.weight"])
    assert torch.equal(averaged.module.head.weight, plain.module.head.weight)


def test_a_finished_run_started_again_trains_nothing_and_exports_the_same(tmp_path: Path) -> None:
    first = train(line_run(), LineObjective(), tmp_path)
    gate = (tmp_path / "gate.json").read_text()

    again = train(line_run(), LineObjective(), tmp_path)

    assert again == first
    assert (tmp_path / "gate.json").read_text() == gate
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints", "config.yaml", "gate.json", "metrics.jsonl", "model", "samples",
    ]  # fmt: skip


def test_resume_never_and_must_say_what_they_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*expected one to resume from"):
        train(line_run(), LineObjective(), tmp_path, resume="must")
    train(line_run(steps=1), LineObjective(), tmp_path)

    with pytest.raises(CheckpointError, match="already holds step-00000001, expected no checkpoint"):
        train(line_run(), LineObjective(), tmp_path, resume="never")


def test_resuming_with_another_config_names_what_differs(tmp_path: Path) -> None:
    train(line_run(steps=1), LineObjective(), tmp_path)
    changed = line_run(seed=3, objective=LineConfig(noise=0.5), optim=OptimConfig(lr=0.05, warmup_ratio=0.2))

    with pytest.raises(CheckpointError) as caught:
        train(changed, LineObjective(), tmp_path)

    assert (
        "objective.noise was 0.1 and is 0.5; optim.weight_decay was 0.1 and is 0.0; seed was 0 and is 3; "
        "expected the same values"
    ) in str(caught.value)


def test_resuming_may_change_cadence_workers_and_length(tmp_path: Path) -> None:
    train(line_run(steps=2), LineObjective(), tmp_path)
    changed = line_run(
        steps=4, log_every=2, save_every=1, sample_every=1, keep_checkpoints=1, num_workers=1, description="x"
    )

    assert train(changed, LineObjective(), tmp_path).step == 4
    with pytest.raises(CheckpointError, match="has 4 steps, expected at most the config's 3"):
        train(line_run(steps=3), LineObjective(), tmp_path)


def test_a_checkpoint_that_does_not_fit_the_model_names_the_tensors() -> None:
    config = line_run()
    state = Run.start(config, LineObjective(), torch.device("cpu")).capture(0)
    other = LineObjective()
    other.module.offset = torch.nn.Parameter(torch.zeros(2))
    wider = Run.start(config, other, torch.device("cpu"))
    frozen = LineObjective()
    frozen.module.offset.requires_grad_(False)
    frozen.parameter_groups = lambda: [  # type: ignore[method-assign]
        group for group in LineObjective.parameter_groups(frozen) if group.name == "head"
    ]
    frozen.module.norm.requires_grad_(False)

    with pytest.raises(CheckpointError, match="model has in another shape offset; expected the trained"):
        wider.restore(state)
    with pytest.raises(CheckpointError, match=r"and the run does not, norm\.bias, norm\.weight, offset;"):
        Run.start(config, frozen, torch.device("cpu")).restore(state)
    assert wider.objective.module.offset.tolist() == [0, 0]


def test_only_what_learns_is_in_a_checkpoint(tmp_path: Path) -> None:
    result = train(line_run(steps=1), LineObjective(), tmp_path)

    names = set(load_run(result.checkpoint).tensors["model"])

    assert names == {
        "head.weight", "head.bias", "offset", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip


def test_the_start_of_a_run_shows_the_tables_and_writes_its_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    train(line_run(steps=1), LineObjective(), tmp_path)

    assert "features frozen, head and offset trained" in caplog.text
    saved = load_config(dict, tmp_path / "config.yaml")
    assert saved["optim"]["lr"] == 0.05
    assert saved["objective"] == {"kind": "line", "noise": 0.1, "dropout": 0.2, "bad_step": None}


def test_a_gate_measured_on_the_way_is_logged_and_moves_no_weight(tmp_path: Path) -> None:
    train(line_run(steps=6), LineObjective(), tmp_path / "plain")
    train(line_run(steps=6, gate_every=2), LineObjective(), tmp_path / "watched")

    records = read_metrics(tmp_path / "watched" / "metrics.jsonl")
    assert [record["step"] for record in records if "gate.error" in record] == [2, 4]  # the last is gate.json
    assert final_state(tmp_path / "watched")["tensors"] == final_state(tmp_path / "plain")["tensors"]


def test_a_run_can_be_profiled_and_moves_the_same_weights(tmp_path: Path) -> None:
    train(line_run(steps=4), LineObjective(), tmp_path / "plain")
    train(line_run(steps=4, profile=(2, 3)), LineObjective(), tmp_path / "profiled")

    trace = json.loads((tmp_path / "profiled" / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "aten::linear" for event in trace["traceEvents"])
    assert final_state(tmp_path / "profiled") == final_state(tmp_path / "plain")


def test_a_run_without_a_terminal_logs_a_line_with_every_line_of_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    train(line_run(steps=5, log_every=2), LineObjective(), tmp_path)

    lines = [line for line in caplog.messages if "data wait" in line]
    assert [line.split(", ")[0] for line in lines] == [f"run line: step {n} of 5" for n in (2, 4, 5)]


def test_devices_are_picked_and_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match="device is 'gpu', expected auto, cpu, cuda"):
        pick_device("gpu")
