import logging

import pytest

from dreamllm.train.progress import RunProgress, short, status_line

RATES = {
    "seconds": 2.0,
    "data_wait": 0.031,
    "positions_per_s": 12345.6,
    "images_read_per_s": 30.0,
    "images_drawn_per_s": 15.0,
    "mfu": 0.412,
    "memory_gib": 12.34,
}


def test_the_line_of_a_step_has_what_is_known() -> None:
    expected = "loss 2.1235, 12.3k tokens/s, 45 pictures/s, data wait 3%, MFU 41%, 12.3 GiB"
    assert status_line(2.12345, RATES) == expected
    assert status_line(0.5, {"seconds": 1.0, "data_wait": 0.0}) == "loss 0.5000, data wait 0%"


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.1234, 999, 1000, 2.5e6, 1e9)] == ["0.123", "999", "1k", "2.5M", "1G"]


def test_a_log_file_shows_where_a_run_is_and_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with RunProgress("line", steps=100, start=0) as progress:
        progress.step_done(9, loss=3.0, rates=RATES)
        progress.logged(10, loss=2.0, rates=RATES)

    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("run line: step 10 of 100, 0:03:00 left: loss 2.0000, 12.3k tokens/s")


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with RunProgress("line", steps=100, start=0, is_main=False) as progress:
        progress.logged(10, loss=2.0, rates=RATES)

    assert not caplog.records
