import logging
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.models import tiny

from dreamllm.runtime.distributed import Ranks
from dreamllm.train.source_meter import MAX_NAMED, SourceMeter
from dreamllm.train.step import StepResult

BATCH = tiny.batch_of([[tiny.STORY]], 32)


def result(**by_source: tuple[float, int]) -> StepResult:
    """Of a step whose sources are spelt `term_source`."""
    named = {(name.split("_")[0], name.split("_")[1]): item for name, item in by_source.items()}
    return StepResult(loss=0.0, terms={}, counts={}, by_source=named, grad_norm=1.0, is_skipped=False)


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """This rank and one that has said what it has to say."""

    size: int = 2
    other: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.other]


def test_a_reading_is_the_mean_over_all_items_since_the_last_one() -> None:
    meter = SourceMeter()
    meter.step_done(1, result(words_pairs=(6.0, 3), words_stories=(8.0, 2), pictures_pairs=(1.0, 1)), [BATCH])
    meter.step_done(2, result(words_pairs=(2.0, 1)), [BATCH])

    reading = meter.reading()
    meter.step_done(3, result(words_pairs=(5.0, 1), words_stories=(7.0, 1)), [BATCH])

    assert reading == {"loss.words.pairs": 2.0, "loss.words.stories": 4.0, "loss.pictures.pairs": 1.0}
    assert meter.reading() == {"loss.words.pairs": 5.0, "loss.words.stories": 7.0}


def test_one_source_has_the_loss_of_the_run_and_needs_no_other() -> None:
    meter = SourceMeter()
    meter.step_done(1, result(words_pairs=(6.0, 3), pictures_pairs=(1.0, 1)), [BATCH])

    assert meter.reading() == {}


def test_all_ranks_are_in_a_reading() -> None:
    other = ({("words", "stories"): (8.0, 2), ("words", "pairs"): (0.0, 1)}, 2)
    meter = SourceMeter(TwoRanks(other=[other]))
    meter.step_done(1, result(words_pairs=(6.0, 3)), [replace(BATCH, left_out=("a.png is cut",))])

    assert meter.reading() == {"left_out": 3.0, "loss.words.pairs": 1.5, "loss.words.stories": 4.0}


def test_documents_left_out_are_all_counted_and_some_named(caplog: pytest.LogCaptureFixture) -> None:
    meter = SourceMeter()
    faults = tuple(f"{number}.png is cut" for number in range(15))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            meter.step_done(step, result(), [replace(BATCH, left_out=faults), BATCH])

    assert meter.reading() == {"left_out": 30.0}
    assert meter.reading() == {}
    named = [record.message for record in caplog.records if "is cut" in record.message]
    assert named[0] == "step 1 goes without one of its documents: 0.png is cut"
    assert len(named) == MAX_NAMED == len(caplog.records) - 1
