"""Log set-up, called by entry points and by nothing else, and the console of logs and progress bars."""

import functools
import logging

from rich.console import Console
from rich.logging import RichHandler

_LEVELS = {-1: logging.ERROR, 0: logging.INFO, 1: logging.DEBUG}


@functools.cache
def stderr_console() -> Console:
    """The one console on standard error; on two of them a progress bar and log lines overwrite each other."""
    return Console(stderr=True)


def configure_logging(verbosity: int = 0) -> None:
    """Send the package's log to standard error: -1 errors only, 0 what is worth reading once, 1 everything.

    Other libraries keep to warnings. Calling it again replaces what an earlier call set up.
    """
    level = _LEVELS[max(-1, min(1, verbosity))]
    handler = RichHandler(console=stderr_console(), show_path=verbosity > 0)
    handler.setFormatter(logging.Formatter("%(message)s", datefmt="%X"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, RichHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("dreamllm").setLevel(level)
