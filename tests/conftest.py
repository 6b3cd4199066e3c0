"""Whatever a test does to the log, the next one finds it unset; and properties are tried on the same examples
in every run, so that a verdict can be repeated."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings
from rich.logging import RichHandler

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _log_unset_afterwards() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, RichHandler)]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("dreamllm").setLevel(logging.NOTSET)
