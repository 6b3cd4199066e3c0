from collections.abc import Mapping
from pathlib import Path

import pytest

from dreamllm.errors import TrainingError
from dreamllm.train.metrics import MetricsLog, read_metrics, step_record
from dreamllm.train.step import StepResult

RESULT = StepResult(
    loss=3.0,
    terms={"next_token": 1.0, "denoising": 0.2},
    counts={"next_token": 50, "denoising": 4},
    by_source={},
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
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')

    with MetricsLog(tmp_path, step=2) as log:
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


def test_a_reading_of_the_meter_is_written_with_it() -> None:
    rates = {"seconds": 1.23456789, "data_wait": 0.5}

    record = step_record(RESULT, step=5, lr=0.1, seconds=2.0, rates=rates)

    assert (record["seconds"], record["data_wait"], record["next_token_per_s"]) == (1.23457, 0.5, 25.0)


def test_sinks_get_the_numbers_of_a_record_and_are_closed(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.seen: list[tuple[int, dict[str, float]]] = []
            self.is_closed = False

        def write(self, step: int, values: Mapping[str, float]) -> None:
            self.seen.append((step, dict(values)))

        def close(self) -> None:
            self.is_closed = True

    sink = Kept()

    with MetricsLog(tmp_path, sinks=[sink]) as log:
        log.write({"step": 3, "loss.denoising": 0.5, "grad_norm": None, "is_skipped": False, "name": "x"})

    assert sink.seen == [(3, {"loss/denoising": 0.5, "is_skipped": 0.0})]
    assert sink.is_closed
