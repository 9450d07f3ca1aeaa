"""Requests that wait at a SuperLink: they end with the message that comes, and occupy no more threads than they may."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.superlink.servicer.fleet import fleet_handlers

from plures.deploy.fleet import outbox
from plures.deploy.fleet.outbox import News, keeping, pulling

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


def test_flower_has_the_functions_that_are_changed() -> None:
    assert f"{fleet_handlers.__name__}.pull_messages" == f"{outbox.HANDLERS}.pull_messages"
    assert (SqlLinkState.__module__, SqlLinkState.store_message_ins.__name__) == (outbox.STATE, "store_message_ins")
