from pathlib import Path

import pytest

from dreamllm.errors import TrainingError
from dreamllm.train.metrics import MetricsLog, read_metrics, step_record
from dreamllm.train.step import StepResult

RESULT = StepResult(
    loss=3.0,
    terms={"next_token": 1.0, "denoising": 0.2},
    counts={"next_token": 50, "denoising": 4},
    grad_norm=0.7,
    is_skipped=False,
)


def test_a_record_has_every_term_and_the_rate_of_its_items() -> None:
    assert step_record(RESULT, step=5, lr=0.1, seconds=2.0) == {
        "step": 5,
        "loss": 3.0,
        "loss.next_token": 1.0,
        "loss.denoising": 0.2,
        "lr": 0.1,
        "grad_norm": 0.7,
        "is_skipped": False,
        "seconds": 2.0,
        "next_token_per_s": 25.0,
        "denoising_per_s": 2.0,
    }


def test_opening_again_drops_the_steps_after_the_checkpoint_and_a_cut_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')

    with MetricsLog(tmp_path, step=2, tensorboard=False) as log:
        log.write({"step": 3, "again": True})

    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]


def test_damage_inside_the_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')

    with pytest.raises(TrainingError, match=r"line 2 of .*metrics.jsonl is not JSON"):
        read_metrics(path)


def test_tensorboard_reads_back_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write({"step": 3, "loss.denoising": 0.5})

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("loss/denoising")
    assert (scalar.step, scalar.value) == (3, 0.5)
