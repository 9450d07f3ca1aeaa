"""A SuperLink that keeps a request for messages or answers until there is one, for a federation on one machine.

Flower's nodes ask for messages again and again, and so does a run's server for their answers. Each request costs the
SuperLink ten milliseconds of processor time, and almost all are in vain. Here a request waits at the SuperLink, so that
there are few, and a message is on its way at once.

A message that is given to a connection that has just broken is lost, with or without this. But a node that is killed
leaves behind a request that waits for up to :data:`LONGEST`, so this is for ``--quick`` alone.

This file is loaded by :mod:`plures.deploy.fleet.programs` without the rest of plures. It changes the functions that
keep and hand out messages.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

HANDLERS = "flwr.superlink.servicer.fleet.fleet_handlers"
ANSWERS = "flwr.superlink.servicer.runtime.runtime_handlers"
STATE = "flwr.server.superlink.linkstate.sql_linkstate"
LONGEST = 2.0
"""Longest time that a request waits, in seconds."""
MOST = 14
"""Largest number of requests for messages that wait, and for answers: each occupies a thread, of which a SuperLink has
forty."""
PARTS, ALL = 0.1, 1.0
"""Seconds without a further part before a message is handed out, and at most in all: its parts arrive after it, and
each part that is asked for too early costs another request."""


class News:
    """How many messages have come, and who waits for the next.

    Attributes:
        count: number of messages so far.
        latest: when the latest message or part of one came.
        waiting: number of requests that wait.
        over: whether the SuperLink is about to end.
    """

    def __init__(self) -> None:
        self.count, self.waiting, self.over, self.latest = 0, 0, False, -math.inf
        self.changed = threading.Condition()

    def came(self) -> None:
        """There is a message."""
        with self.changed:
            self.count, self.latest = self.count + 1, time.monotonic()
            self.changed.notify_all()

    def part(self) -> None:
        """A part of a message has come."""
        self.latest = time.monotonic()

    def settle(self) -> None:
        """Wait until no further part comes."""
        end = time.monotonic() + ALL
        while (left := min(self.latest + PARTS, end) - time.monotonic()) > 0 and not self.over:
            time.sleep(left)

    def end(self) -> None:
        """Nobody waits any longer."""
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def wait(self, seen: int) -> bool:
        """Wait until a message has come since ``seen``, if there is room to wait; returns whether one has."""
        with self.changed:
            if self.waiting < MOST:
                self.waiting += 1
                try:
                    self.changed.wait_for(lambda: self.over or self.count > seen, LONGEST)
                finally:
                    self.waiting -= 1
            return self.count > seen


def keeping(store: Callable[..., str | None], news: News) -> Callable[..., str | None]:
    """Wrap Flower's function that keeps a message or an answer, so that waiting requests hear of it."""

    def kept(state: object, message: object) -> str | None:
        number = store(state, message)
        news.came()
        return number

    return kept


def taking(take: Callable[..., Any], news: News) -> Callable[..., Any]:
    """Wrap Flower's function that takes a part of a message."""

    def taken(*request: object, **named: object) -> Any:
        found = take(*request, **named)
        news.part()
        return found

    return taken


def pulling(pull: Callable[..., Any], news: News) -> Callable[..., Any]:
    """Wrap Flower's function that hands out messages or answers, so that it waits for one."""

    def pulled(*request: object, **named: object) -> Any:
        end = time.monotonic() + LONGEST
        while True:
            seen = news.count
            found = pull(*request, **named)
            if found.messages_list or time.monotonic() > end or not news.wait(seen):
                return found
            news.settle()

    return pulled


def install() -> None:
    """Apply these changes to the SuperLink in this process."""
    messages, answers, uvicorn = News(), News(), importlib.import_module("uvicorn")
    nodes: Any = importlib.import_module(HANDLERS)
    runs: Any = importlib.import_module(ANSWERS)
    state: Any = importlib.import_module(STATE).SqlLinkState
    server: Any = uvicorn.Server
    ends = server.handle_exit

    def ended(*given: object) -> None:
        messages.end()
        answers.end()
        ends(*given)

    server.handle_exit = ended
    state.store_message_ins = keeping(state.store_message_ins, messages)
    nodes.pull_messages = pulling(nodes.pull_messages, messages)
    runs.push_object = taking(runs.push_object, messages)
    state.store_message_res = keeping(state.store_message_res, answers)
    runs.pull_messages = pulling(runs.pull_messages, answers)
    nodes.push_object = taking(nodes.push_object, answers)
