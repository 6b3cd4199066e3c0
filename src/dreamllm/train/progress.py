"""What a run says of itself while it runs: a bar where someone watches, a log line where nobody does."""

import logging
from collections.abc import Mapping
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dreamllm.runtime.logs import stderr_console
from dreamllm.train.meters import SECONDS

logger = logging.getLogger(__name__)


class RunProgress:
    """The bar of a run, or its lines in a log; use it as a context manager."""

    def __init__(self, name: str, *, steps: int, start: int, is_main: bool = True) -> None:
        """Of many ranks the main one alone says something."""
        console = stderr_console()
        self._name, self._steps = name, steps
        self._has_bar, self._has_lines = is_main and console.is_terminal, is_main and not console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not self._has_bar,
        )
        self._task = self._progress.add_task(name, total=steps, completed=start, line="")

    def step_done(self, step: int, *, loss: float, rates: Mapping[str, float]) -> None:
        """Move the bar, after every step."""
        if self._has_bar:
            self._progress.update(self._task, completed=step, line=status_line(loss, rates))

    def logged(self, step: int, *, loss: float, rates: Mapping[str, float]) -> None:
        """Log a line where there is no bar, whenever a line of metrics is written."""
        if self._has_lines:
            left = timedelta(seconds=round((self._steps - step) * rates.get(SECONDS, 0.0)))
            line = status_line(loss, rates)
            logger.info("run %s: step %d of %d, %s left: %s", self._name, step, self._steps, left, line)

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def status_line(loss: float, rates: Mapping[str, float]) -> str:
    """The loss and those of a meter's rates that are known: `loss 2.1, 3.4k tokens/s, 12 pictures/s, ...`.

    Tokens are positions of documents, pictures those read and those drawn.
    """
    parts = [f"loss {loss:.4f}"]
    if "positions_per_s" in rates:
        pictures = rates["images_read_per_s"] + rates["images_drawn_per_s"]
        parts += [f"{short(rates['positions_per_s'])} tokens/s", f"{short(pictures)} pictures/s"]
    if "data_wait" in rates:
        parts.append(f"data wait {rates['data_wait']:.0%}")
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.0%}")
    if "memory_gib" in rates:
        parts.append(f"{rates['memory_gib']:.1f} GiB")
    return ", ".join(parts)


def short(value: float) -> str:
    """Three digits and a letter: 12.3k."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
