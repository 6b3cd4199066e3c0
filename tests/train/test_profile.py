import json
import logging
import re
from pathlib import Path

import pytest
import torch

from dreamllm.train.profile import StepProfiler

CPU = torch.device("cpu")


def run(steps: tuple[int, int] | None, folder: Path, *, num_steps: int) -> None:
    """Step n multiplies matrices of n rows."""
    with StepProfiler(steps, folder, device=CPU) as profiler:
        for step in range(1, num_steps + 1):
            for _ in range(step):
                torch.ones(2, 2) @ torch.ones(2, 2)
            profiler.step_done()


def num_products(folder: Path) -> int:
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return sum(event.get("name") == "aten::mm" for event in events)


@pytest.mark.parametrize(("steps", "expected"), [((2, 2), 2), ((2, 3), 2 + 3), ((3, 4), 3 + 4), ((5, 5), 5)])
def test_the_steps_asked_for_are_traced_and_no_other(
    steps: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    run(steps, tmp_path, num_steps=6)

    assert num_products(tmp_path) == expected


def test_a_run_that_ends_early_leaves_what_was_traced(tmp_path: Path) -> None:
    run((2, 9), tmp_path, num_steps=3)

    assert num_products(tmp_path) == 2 + 3


def test_without_steps_nothing_is_written(tmp_path: Path) -> None:
    run(None, tmp_path, num_steps=3)
    run((7, 8), tmp_path, num_steps=3)

    assert not list(tmp_path.iterdir())


def test_the_log_names_the_most_costly_operators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    run((2, 3), tmp_path, num_steps=3)

    table = caplog.text.split("calls\n")[1].splitlines()
    shares = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in table}
    assert len(shares) <= 10
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert re.search(r"aten::mm .* 5$", caplog.text, flags=re.MULTILINE)
