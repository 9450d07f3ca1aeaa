"""Ctrl-C and SIGTERM end a run where nothing is lost by it: a simulation after the round it is in, a server at once."""

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
"""Seconds after SIGTERM in which a round may come to its end: who sends it kills soon after."""
SLICE = 1.0
"""Seconds after which a wait looks up: Python hears of a signal that another thread has got only then."""


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM is only noted; a second one interrupts at once.

    After SIGTERM, some seconds count as the second one: what is kept is whole at any moment.

    Args:
        grace: these seconds.

    Attributes:
        asked: whether the run is to end.
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
    """A signal has come that ends what is done.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending() -> Iterator[None]:
    """A context that Ctrl-C or SIGTERM ends at once; when it is left, the signal goes to whoever handled it before.

    So what is done inside can be tidied up and told of as after any error, whatever Flower does with its process then.
    A second signal does not wait for that.
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
    """Give signals back to those who handled them; a handler that was not Python's stays replaced."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def rest(seconds: float) -> None:
    """Wait some seconds while still receiving signals."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SLICE))
