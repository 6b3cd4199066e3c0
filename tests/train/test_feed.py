import logging

import pytest
import torch
from tests.train.line_objective import LineObjective, line_run

from dreamllm.train.feed import StepFeed
from dreamllm.train.interrupt import StopRequest
from dreamllm.train.run_state import Run

# Python 3.12 and later warn of any fork beside threads; loader workers fork on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def a_feed(start: int = 0, **changes: int) -> StepFeed:
    config = line_run(steps=5, **changes)
    return StepFeed(Run.start(config, LineObjective(), torch.device("cpu")), start, StopRequest())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_steps_that_are_left_come_in_order_with_any_number_of_workers(num_workers: int) -> None:
    feed = a_feed(2, num_workers=num_workers)

    assert [micro_batches[0].ids[0] for micro_batches in feed] == ["point-2-0", "point-3-0", "point-4-0"]


def test_a_run_that_waits_for_data_without_workers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dreamllm")
    feed, helped = a_feed(), a_feed(num_workers=1)

    feed.warn_of_waiting({})
    feed.warn_of_waiting({"data_wait": 0.2})
    helped.warn_of_waiting({"data_wait": 0.9})
    assert caplog.text == ""
    feed.warn_of_waiting({"data_wait": 0.31})
    feed.warn_of_waiting({"data_wait": 0.5})

    [record] = caplog.records
    assert "waits for data 31 % of its time" in record.message
    assert "set num_workers" in record.message
