"""Ctrl-C and SIGTERM stop a run without losing anything: a simulation after its current round, a server at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
GRACE = 4.0
"""Seconds that a round has to finish after SIGTERM, which is usually followed by SIGKILL."""
SLICE = 1.0
"""Longest single wait in seconds: Python handles a signal that another thread received only when a wait ends."""


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM is only recorded; a second one interrupts at once.

    After SIGTERM, the interrupt comes after ``grace`` seconds at the latest. Stored files are complete at any moment.

    Args:
        grace: seconds from SIGTERM to the interrupt.

    Attributes:
        asked: whether the run should stop.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.asked, self.grace = False, grace
        self._previous: dict[signal.Signals, Any] = {}
        self._limit: threading.Timer | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGTERM:
            self._limit = threading.Timer(self.grace, os.kill, (os.getpid(), number))
            self._limit.daemon = True
            self._limit.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._limit is not None:
            self._limit.cancel()
        restore(self._previous)


class Ended(KeyboardInterrupt):
    """A signal arrived that ends the current work.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending() -> Iterator[None]:
    """A context that Ctrl-C or SIGTERM ends at once; on leaving it, the signal goes to the previous handler.

    So work inside can clean up and log as after any error, before Flower's own handler deals with the process. A second
    signal does not wait for the clean-up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[signal.Signals, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        restore(previous)
        raise Ended(number)

    previous |= {number: signal.signal(number, end) for number in NUMBERS}
    try:
        yield
    except Ended as ended:
        signal.raise_signal(ended.number)
        raise
    finally:
        restore(previous)


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """Restore signal handlers; one that was not set by Python stays replaced."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def rest(seconds: float) -> None:
    """Wait some seconds while still receiving signals."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SLICE))
