"""A few steps of a run under torch's profiler: a trace to open in Perfetto, and what was most costly.

    out_dir/profile/trace.json

The step before the first traced one runs under the profiler too, to warm it up. Profiled steps are slower.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

NUM_OPERATORS: Final = 10


class StepProfiler:
    """Counts steps and traces some of them; use it as a context manager. Without steps it does nothing."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, *, device: torch.device) -> None:
        """`steps` are the first and the last to trace, counted from 1 when the context is entered; the first
        is 2 or more."""
        self._steps, self._folder, self._device = steps, folder, device
        self._done = 0
        self._profiler: Any = None

    def step_done(self) -> None:
        """Tell the profiler that a step ends here; after the last it writes what it saw."""
        self._done += 1
        if self._steps is None:
            return
        if self._profiler is not None:
            self._profiler.step()
        if self._done == self._steps[1]:
            self._finish()
        else:
            self._start_when_due()

    def __enter__(self) -> "StepProfiler":
        self._start_when_due()
        return self

    def __exit__(self, *error: object) -> None:
        self._finish()

    def _start_when_due(self) -> None:
        """Start at the step before the first that is traced."""
        if self._steps is None or self._done != self._steps[0] - 2:
            return
        first, last = self._steps
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=last - first + 1, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def _finish(self) -> None:
        """Also where a run ends before the last step it was to trace."""
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()

    def _write(self, profiler: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "trace.json"
        profiler.export_chrome_trace(str(path))
        table = costly_operators(profiler.key_averages(), on_gpu=self._device.type == "cuda")
        logger.info("profile in %s, for ui.perfetto.dev; most costly by their own time:\n%s", path, table)


def costly_operators(averages: Sequence[Any], *, on_gpu: bool, num_operators: int = NUM_OPERATORS) -> str:
    """A table of the operators with the most time of their own, a line each: share, milliseconds, calls."""
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {each.key: (getattr(each, name), each.count) for each in averages if not _is_step(each.key)}
    whole = sum(time for time, _ in times.values()) or 1
    lines = [f"{'operator':<34} {'share':>6} {'ms':>9} {'calls':>7}"]
    for key, (time, count) in sorted(times.items(), key=lambda item: -item[1][0])[:num_operators]:
        lines.append(f"{key[:34]:<34} {time / whole:>6.1%} {time / 1000:>9.1f} {count:>7}")
    return "\n".join(lines)


def _is_step(key: str) -> bool:
    """Whether it stands for a whole step and not for an operator in it."""
    return key.startswith("ProfilerStep")
