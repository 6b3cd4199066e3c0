"""What a run sees of its sources: the mean loss of each, and documents that had to be left out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dreamllm.runtime.distributed import ALONE, Ranks
from dreamllm.sequence.batch import Batch
from dreamllm.train.step import StepResult

logger = logging.getLogger(__name__)

MAX_NAMED: Final = 20
"""Documents left out that are named in the log, of each rank; all are counted."""


class SourceMeter:
    """Adds up what steps say of their sources, from one reading to the next."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}
        self._left_out = self._named = 0

    def step_done(self, step: int, result: StepResult, micro_batches: Sequence[Any]) -> None:
        """Take in a step; documents that it went without are named in the log."""
        _add(self._sums, result.by_source)
        for micro_batch in micro_batches:
            for fault in micro_batch.left_out if isinstance(micro_batch, Batch) else ():
                self._left_out += 1
                self._named += 1
                if self._named <= MAX_NAMED:
                    logger.warning("step %d goes without one of its documents: %s", step, fault)
                if self._named == MAX_NAMED:
                    logger.warning(
                        "%d documents are left out by now; more of them are counted (`left_out` in "
                        "metrics.jsonl) and not named; `dreamllm data check` names all",
                        MAX_NAMED,
                    )

    def reading(self) -> dict[str, float]:
        """Over all ranks, which must ask together; the next reading begins here.

        `loss.TERM.SOURCE`, where there are several sources, the mean over what each of them supervised since
        the last reading; and `left_out`, where there were such documents.
        """
        own = self._sums, self._left_out
        self._sums, self._left_out = {}, 0
        whole: dict[tuple[str, str], tuple[float, int]] = {}
        left_out = 0
        for sums, number in self._ranks.gather(own):
            _add(whole, sums)
            left_out += number
        readings = {"left_out": float(left_out)} if left_out else {}
        if len({source for _, source in whole}) > 1:
            readings |= {
                f"loss.{term}.{source}": total / count
                for (term, source), (total, count) in sorted(whole.items())
            }
        return readings


def _add(
    sums: dict[tuple[str, str], tuple[float, int]], more: Mapping[tuple[str, str], tuple[float, int]]
) -> None:
    for key, (total, count) in more.items():
        before = sums.get(key, (0.0, 0))
        sums[key] = (before[0] + total, before[1] + count)
