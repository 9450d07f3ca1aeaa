"""Requests that wait at a SuperLink: they end with the message that comes, and occupy no more threads than they may."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from plures.deploy.fleet import outbox
from plures.deploy.fleet.outbox import ALL, PARTS, News, keeping, pulling, taking

NEVER = 600.0
"""Seconds that no test waits for."""


class SuperLink:
    """Flower's functions of a SuperLink, with the changes around them.

    Attributes:
        messages: those that no node has been given.
        looked: called whenever a node's messages were looked for, before the answer.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.looked = lambda: None
        self.news = News()
        self.pull = pulling(self.plain, self.news)
        self.store = keeping(self.keep, self.news)

    def plain(self, request: Any, state: Any, store: Any) -> Any:
        found, self.messages = self.messages, []
        self.looked()
        return SimpleNamespace(messages_list=found)

    def keep(self, state: Any, message: Any) -> str:
        self.messages.append(message)
        return "number"

    def asked(self) -> tuple[threading.Thread, list[list[str]]]:
        """A request of a node, and what it was given."""
        given: list[list[str]] = []
        thread = threading.Thread(target=lambda: given.append(self.pull(None, None, None).messages_list), daemon=True)
        thread.start()
        return thread, given


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    monkeypatch.setattr(outbox, "LONGEST", NEVER)
    return SuperLink()


def waiting(superlink: SuperLink, count: int) -> None:
    """Until some requests wait."""
    while True:
        with superlink.news.changed:
            if superlink.news.waiting == count:
                return


def test_a_message_ends_the_waiting_and_is_given_once(superlink: SuperLink) -> None:
    one, first = superlink.asked()
    waiting(superlink, 1)
    assert superlink.store(None, "words") == "number"
    one.join(60)
    assert first == [["words"]]
    two, second = superlink.asked()
    waiting(superlink, 1)
    superlink.news.end()
    two.join(60)
    assert second == [[]]


def test_a_message_that_comes_between_the_look_and_the_waiting_is_not_missed(superlink: SuperLink) -> None:
    def once() -> None:
        superlink.looked = lambda: None
        superlink.store(None, "words")

    superlink.looked = once
    thread, given = superlink.asked()
    thread.join(60)
    assert given == [["words"]]


def test_no_more_wait_than_threads_may_be_occupied(superlink: SuperLink) -> None:
    held = [superlink.asked() for _ in range(outbox.MOST)]
    waiting(superlink, outbox.MOST)
    assert superlink.pull(None, None, None).messages_list == []
    superlink.news.end()
    for thread, given in held:
        thread.join(60)
        assert given == [[]]
    assert superlink.news.waiting == 0


def test_without_a_message_the_answer_is_empty_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LONGEST", 0.01)
    assert SuperLink().pull(None, None, None).messages_list == []


class Clock:
    """A clock that sleeping moves on.

    Attributes:
        parts: when parts of a message come, in order.
    """

    def __init__(self, take: Any, parts: list[float]) -> None:
        self.now, self.parts, self.take = 100.0, parts, take

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self.parts and self.parts[0] <= end:
            self.now = self.parts.pop(0)
            assert self.take("part") == "taken"
        self.now = end


@pytest.mark.parametrize(
    ("parts", "end"),
    [([], PARTS), ([0.04, 0.11], 0.11 + PARTS), ([0.04, 0.3], 0.04 + PARTS), ([n / 20 for n in range(1, 90)], ALL)],
    ids=["none", "some", "one late", "no end"],
)
def test_a_message_is_handed_out_when_no_further_part_comes(
    monkeypatch: pytest.MonkeyPatch, parts: list[float], end: float
) -> None:
    news = News()
    clock = Clock(taking(lambda part: "taken", news), [100 + part for part in parts])
    monkeypatch.setattr(outbox, "time", clock)
    news.came()
    news.settle()
    assert clock.now == pytest.approx(100 + end)


def test_flower_has_the_functions_that_are_changed() -> None:
    assert fleet_handlers.__name__ == outbox.HANDLERS
    assert runtime_handlers.__name__ == outbox.ANSWERS
    for handlers in (fleet_handlers, runtime_handlers):
        assert {"pull_messages", "push_object"} <= vars(handlers).keys()
    assert SqlLinkState.__module__ == outbox.STATE
    assert {"store_message_ins", "store_message_res"} <= vars(SqlLinkState).keys()
