"""Log set-up, called by entry points and by nothing else."""

import logging

from rich.console import Console
from rich.logging import RichHandler

LEVELS = {-1: logging.ERROR, 0: logging.INFO, 1: logging.DEBUG}


def configure_logging(verbosity: int = 0) -> None:
    """Send the package's log to standard error: -1 errors only, 0 what is worth reading once, 1 everything.

    Other libraries keep to warnings. Calling it again replaces what an earlier call set up.
    """
    level = LEVELS[max(-1, min(1, verbosity))]
    handler = RichHandler(console=Console(stderr=True), show_path=verbosity > 0, rich_tracebacks=True)
    handler.setFormatter(logging.Formatter("%(message)s", datefmt="%X"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, RichHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("dreamllm").setLevel(level)
