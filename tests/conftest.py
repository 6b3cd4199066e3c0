"""Whatever a test, or a fixture that it shares, does to the log: the next test finds the log unset."""

import logging
from collections.abc import Iterator

import pytest
from rich.logging import RichHandler


@pytest.fixture(autouse=True)
def _log_unset_afterwards() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, RichHandler)]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("dreamllm").setLevel(logging.NOTSET)
