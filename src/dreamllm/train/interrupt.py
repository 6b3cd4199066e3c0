"""Ctrl-C and SIGTERM as a request to stop after the step at hand."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Whether someone asked the run to stop."""

    signal_name: str | None = None
    """`SIGINT` or `SIGTERM`, once asked."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the block the first SIGINT or SIGTERM only sets the request; a second SIGINT interrupts at once.

    Outside the main thread, where Python delivers no signals, the request is never set.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal_name = signal.Signals(number).name

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_sigint_to_parent(worker: int) -> None:
    """For loader workers: Ctrl-C reaches the whole process group, and the step at hand still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
