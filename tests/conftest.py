"""What every test may rely on: whatever a test does to the log, the next one finds it as pytest set it up."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("dreamllm")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])  # not `.level =`: only this empties what loggers remember of levels
    ours.setLevel(before[2])
