import logging

import pytest
from rich.logging import RichHandler

from dreamllm.runtime.logs import configure_logging, stderr_console


@pytest.mark.parametrize(("verbosity", "shown"), [(-1, 1), (0, 3), (1, 4)])
def test_verbosity_decides_what_the_package_says(verbosity: int, shown: int) -> None:
    configure_logging(verbosity)
    ours = logging.getLogger("dreamllm.train.loop")

    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

    assert sum(ours.isEnabledFor(level) for level in levels) == shown


def test_other_libraries_keep_to_warnings() -> None:
    configure_logging(1)

    assert not logging.getLogger("another.library").isEnabledFor(logging.INFO)
    assert logging.getLogger("another.library").isEnabledFor(logging.WARNING)


def test_configuring_twice_does_not_say_everything_twice() -> None:
    configure_logging()
    configure_logging()

    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, RichHandler)]
    assert len(handlers) == 1
    assert handlers[0].console is stderr_console()
