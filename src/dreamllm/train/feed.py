"""What a run is fed: the micro-batches of every step that is left, prepared ahead where it has workers.

The order of steps is that of their numbers, and nothing is kept between two of them, so a run may be stopped
after any step. Beside a CUDA device batches lie in page-locked memory, from which they are copied while the
host goes on.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from torch.utils.data import DataLoader

from dreamllm.train.interrupt import StopRequest, leave_sigint_to_parent
from dreamllm.train.run_state import Run

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

LONG_WAIT: Final = 0.2
"""Share of the time between two log lines that a run may wait for data without being told."""


class StepFeed:
    """Iterates over the micro-batches of steps, `start` and after it; ends early where a signal took them."""

    def __init__(self, run: Run, start: int, stop: StopRequest) -> None:
        self._run, self._start, self._stop = run, start, stop
        self._has_warned = False

    def __iter__(self) -> Iterator[Sequence[Any]]:
        """All ranks must iterate together."""
        run, config = self._run, self._run.config
        loader = DataLoader(
            run.objective.data,
            sampler=range(self._start, config.steps),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=config.num_workers,
            worker_init_fn=leave_sigint_to_parent,
            pin_memory=run.device.type == "cuda",
        )
        steps = iter(loader)
        for _ in range(self._start, config.steps):
            micro_batches: Sequence[Any] | None = None
            try:
                micro_batches = next(steps)
            except RuntimeError:
                # A SIGTERM to the whole process group also ends the workers; what is done so far is still
                # saved.
                if self._stop.signal_name is None or config.num_workers == 0:
                    raise
            if run.ranks.any(flag=micro_batches is None) or micro_batches is None:
                return
            yield micro_batches

    def warn_of_waiting(self, rates: Mapping[str, float]) -> None:
        """Say once a run that it waits for data, by a meter's reading, where workers would help."""
        waited = rates.get("data_wait", 0.0)
        if waited > LONG_WAIT and self._run.config.num_workers == 0 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "run %s waits for data %.0f %% of its time, and prepares them itself (num_workers is 0); set "
                "num_workers to the cores that each process has to spare, 2 to 8",
                self._run.config.name,
                100 * waited,
            )


def _as_it_is(micro_batches: Item) -> Item:
    """Keeps the loader from turning arrays into tensors."""
    return micro_batches
