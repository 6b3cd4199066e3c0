from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tests.models import tiny

from dreamllm.runtime.distributed import Ranks
from dreamllm.train.meters import StepMeter, known_peak, measured_peak, peak_flops, peak_memory

CPU = torch.device("cpu")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """This rank and one that says what it is told to say."""

    size: int = 2
    other: list[list[float]] = field(default_factory=list)

    def _reduced(self, values: list[float], operation: str) -> list[float]:
        combine = {"SUM": lambda a, b: a + b, "MAX": max}[operation]
        return [combine(a, b) for a, b in zip(values, self.other.pop(0), strict=True)]


def run_steps(meter: StepMeter, clock: Clock) -> None:
    """Two steps of 4 seconds, of which 1 is waiting, each of two micro-batches."""
    batch = tiny.batch_of([[tiny.STORY], [tiny.CREATION, tiny.CAPTION]], 32)  # 29, 9 and 11 positions
    for _ in range(2):
        meter.begin()
        clock.now += 1
        meter.data_ready()
        clock.now += 3
        assert meter.step_done([batch, batch]) == 4
        clock.now += 100  # a sample, say


def test_rates_are_those_of_the_steps_without_what_is_between_them() -> None:
    clock = Clock()
    meter = StepMeter(CPU, flops=lambda batch: 6 * 10**12, peak_flops=12e12, clock=clock)

    run_steps(meter, clock)
    reading = meter.reading()

    assert reading.pop("memory_gib") > 0.05
    assert reading == {
        "seconds": 4,
        "data_wait": 0.25,
        "padding": 15 / 64,
        "positions_per_s": 4 * 49 / 8,
        "documents_per_s": 4 * 3 / 8,
        "images_read_per_s": 4 * 3 / 8,
        "images_drawn_per_s": 4 * 3 / 8,
        "tflops_per_s": 4 * 6 / 8,
        "mfu": 4 * 6 / 8 / 12,
    }
    assert meter.reading() == {}


def test_ranks_add_what_they_computed_and_share_the_time_of_the_slowest() -> None:
    clock = Clock()
    # positions, padding, documents, pictures read and drawn, FLOPs; then seconds, seconds waited, memory
    other = [[196.0, 60.0, 12.0, 4.0, 0.0, 24e12], [10.0, 1.0, 2.0**60]]
    meter = StepMeter(
        CPU, flops=lambda batch: 6 * 10**12, peak_flops=12e12, ranks=TwoRanks(other=other), clock=clock
    )

    run_steps(meter, clock)
    alone = meter.so_far()
    reading = meter.reading()

    assert alone["positions_per_s"] == 2 * 4 * 49 / 8
    assert alone["mfu"] == 4 * 6 / 8 / 12
    assert reading["data_wait"] == 2 / 10
    assert reading["positions_per_s"] == 2 * 4 * 49 / 10
    assert reading["images_read_per_s"] == (12 + 4) / 10
    assert reading["mfu"] == pytest.approx(2 * 24 / 10 / (2 * 12))
    assert reading["memory_gib"] == 2.0**30


def test_documents_without_a_name_count_and_dropped_conditions_do_not() -> None:
    clock = Clock()
    meter = StepMeter(CPU, clock=clock)
    batch = tiny.batch_of([[tiny.CREATION] * 4], 40)

    meter.begin()
    clock.now += 2
    meter.step_done([replace(batch, document_ids=("a", "a", "", ""))])

    assert meter.so_far()["documents_per_s"] == 3 / 2
    assert "mfu" not in meter.so_far()


def test_micro_batches_of_another_kind_have_a_time_and_no_rates() -> None:
    meter = StepMeter(CPU)

    meter.begin()
    meter.data_ready()
    meter.step_done(["scenes"])

    assert set(meter.reading()) == {"seconds", "data_wait", "memory_gib"}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
    ],
)
def test_the_peak_of_a_known_card_is_that_of_its_data_sheet(name: str, tflops: float) -> None:
    assert known_peak(name) == tflops * 1e12


def test_an_unknown_device_has_a_peak_only_where_it_is_measured() -> None:
    assert known_peak("NVIDIA GeForce GTX 1080") is None
    assert peak_flops(CPU) is None
    assert 1e8 < measured_peak(CPU, size=256) < 1e15


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux alone writes it")
def test_memory_is_the_worst_of_the_process_so_far() -> None:
    block = b"x" * 2**26
    del block

    peak = peak_memory(CPU)

    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    assert peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)
