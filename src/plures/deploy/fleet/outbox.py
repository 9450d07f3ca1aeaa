"""A SuperLink that keeps a node's request for messages until there is one, for a federation on one machine.

Flower's nodes ask for messages again and again. Each request costs the SuperLink ten milliseconds of processor time,
and almost all are in vain. Here a request waits at the SuperLink, so that there are few, and a message is on its way at
once.

A message that is given to a connection that has just broken is lost, with or without this. But a node that is killed
leaves behind a request that waits for up to :data:`LONGEST`, so this is for ``--quick`` alone.

This file is loaded by :mod:`plures.deploy.fleet.programs` without the rest of plures. It changes the functions that
keep and hand out messages.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from typing import Any

HANDLERS = "flwr.superlink.servicer.fleet.fleet_handlers"
STATE = "flwr.server.superlink.linkstate.sql_linkstate"
LONGEST = 2.0
"""Longest time that a request waits, in seconds."""
MOST = 16
"""Largest number of requests that wait, because each occupies a thread, of which a SuperLink has forty."""
PARTS = 0.1
"""Seconds between a message and its handing out: its parts arrive after it, and each part that is asked for too early
costs another request."""


class News:
    """How many messages have come, and who waits for the next.

    Attributes:
        count: number of messages so far.
        waiting: number of requests that wait.
        over: whether the SuperLink is about to end.
    """

    def __init__(self) -> None:
        self.count, self.waiting, self.over = 0, 0, False
        self.changed = threading.Condition()

    def came(self) -> None:
        """There is a message."""
        with self.changed:
            self.count += 1
            self.changed.notify_all()

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
    """Wrap Flower's function that keeps a message for a node, so that waiting requests hear of it."""

    def kept(state: object, message: object) -> str | None:
        number = store(state, message)
        news.came()
        return number

    return kept


def pulling(pull: Callable[..., Any], news: News) -> Callable[..., Any]:
    """Wrap Flower's function that hands out a node's messages, so that it waits for one."""

    def pulled(request: object, state: object, store: object) -> Any:
        end = time.monotonic() + LONGEST
        while True:
            seen = news.count
            found = pull(request=request, state=state, store=store)
            if found.messages_list or time.monotonic() > end or not news.wait(seen):
                return found
            time.sleep(PARTS)

    return pulled


def install() -> None:
    """Apply these changes to the SuperLink in this process."""
    news, uvicorn = News(), importlib.import_module("uvicorn")
    handlers: Any = importlib.import_module(HANDLERS)
    state: Any = importlib.import_module(STATE).SqlLinkState
    server: Any = uvicorn.Server
    ends = server.handle_exit

    def ended(*given: object) -> None:
        news.end()
        ends(*given)

    server.handle_exit = ended
    state.store_message_ins = keeping(state.store_message_ins, news)
    handlers.pull_messages = pulling(handlers.pull_messages, news)
