"""Messages over a Flower grid: which answers come back, and none after the deadline."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.run import RunNotRunningException

from plures.remote.flower import ONE_PART, GridTransport, opened, sealed

BODY = 5200 * 1024
"""``client_max_body_size`` of a part at the coordinator's door."""


@dataclass
class Message:
    """Stands in for Flower's, which exists only in Flower's own processes."""

    content: RecordDict | None
    node: int = 0
    kind: str = ""
    ttl: float = 0.0
    error: SimpleNamespace | None = None

    def has_error(self) -> bool:
        return self.error is not None


class Nodes:
    """A grid whose nodes answer in the given ways; ``hang`` is a node that died while it sent its answer."""

    def __init__(self, **manners: str) -> None:
        self.manners = {int(name[1:]): manner for name, manner in manners.items()}
        self.asked: dict[str, Message] = {}
        self.over = threading.Event()

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        messages = list(messages)
        self.asked |= {str(m.node): m for m in messages}
        return [None if self.manners[m.node] == "untaken" else str(m.node) for m in messages]

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        return [reply for number in numbers for reply in self.reply(number)]

    def reply(self, number: str) -> Iterator[Message]:
        message, manner = self.asked[number], self.manners[int(number)]
        if manner == "echo":
            yield Message(sealed(opened(message.content) + b"!"))
        elif manner == "error":
            yield Message(None, error=SimpleNamespace(reason="Node Unavailable"))
        elif manner == "hang":
            self.over.wait(60)
        elif manner == "foreign":
            yield Message(RecordDict())
        elif manner == "unreadable":
            raise ValueError("Unexpected format for object head.")
        elif manner == "refused":
            raise httpx.HTTPError("502")
        elif manner == "broken":
            raise ConnectionError("the SuperLink is gone")
        elif manner == "stopped":
            raise RunNotRunningException


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("plures.remote.flower.Message", Message)
    made: list[Nodes] = []

    def ask(deadline: float, **manners: str) -> tuple[dict[int, bytes | str], float]:
        made.append(Nodes(**manners))
        begun = time.monotonic()
        nodes = made[-1].manners
        found = GridTransport(made[-1]).exchange({node: b"%d" % node for node in nodes}, deadline)
        return found, time.monotonic() - begun

    yield ask
    for nodes in made:
        nodes.over.set()


def test_answers_and_errors_by_node(asked):
    found, took = asked(30.0, _1="echo", _2="error", _3="untaken")
    assert found == {1: b"1!", 2: "Flower: Node Unavailable", 3: "Flower did not take its message"}
    assert took < 30


def test_a_node_that_died_while_it_sent_holds_nobody_up(asked):
    found, took = asked(1.0, _1="hang", _2="echo", _3="silent", _4="echo")
    assert found == {2: b"2!", 4: b"4!"}
    assert 1.0 <= took < 60


def test_an_answer_that_flower_cannot_read_counts_for_its_sender_alone(asked):
    found, _ = asked(30.0, _1="echo", _2="unreadable", _3="foreign")
    assert found == {
        1: b"1!",
        2: "Flower cannot read it: ValueError('Unexpected format for object head.')",
        3: "what arrived is not a message of plures: run the same app on both sides",
    }


def test_a_superlink_that_is_not_there_ends_the_exchange(asked):
    with pytest.raises(httpx.HTTPError, match="502"):
        asked(30.0, _1="hang", _2="refused")


def test_a_broken_connection_ends_the_exchange(asked):
    with pytest.raises(ConnectionError, match="the SuperLink is gone"):
        asked(30.0, _1="hang", _2="broken")


def test_a_run_that_is_stopped_ends_the_exchange_at_once(asked):
    begun = time.monotonic()
    with pytest.raises(RunNotRunningException):
        asked(60.0, _1="hang", _2="stopped")
    assert time.monotonic() - begun < 60


def test_a_signal_that_a_thread_got_ends_the_exchange(asked):
    """Flower raises one in a thread when the ServerApp's parent is gone; the main thread slept until the deadline."""
    begun = time.monotonic()
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        asked(60.0, _1="hang")
    assert time.monotonic() - begun < 60


def test_nobody_asked(asked):
    assert asked(30.0)[0] == {}


@pytest.mark.parametrize(("length", "parts"), [(0, 3), (ONE_PART, 3), (ONE_PART + 1, 5), (6_000_000, 6)])
def test_a_message_has_few_parts_and_none_is_longer_than_the_door_lets_in(length: int, parts: int) -> None:
    """Each part costs the SuperLink two requests; a message is itself one."""
    content = sealed(bytes(length))
    assert opened(content) == bytes(length)
    sizes = [len(part.deflate()) for part in get_all_nested_objects(content).values()]
    assert len(sizes) + 1 == parts
    assert max(sizes) <= BODY


def test_the_first_look_is_when_an_answer_may_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """After six tenths of the time that the first answer took last time."""
    monkeypatch.setattr("plures.remote.flower.Message", Message)
    nodes, slept = Nodes(_1="echo", _2="echo"), list[float]()
    transport, pull = GridTransport(nodes), nodes.pull_messages

    def look(numbers: Iterable[str]) -> list[Message]:
        return pull(numbers) if time.monotonic() - begun >= 1.0 else []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(nodes, "pull_messages", look)
    monkeypatch.setattr("plures.remote.flower.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    took = 0.0
    for least in (0.0, 0.6):
        slept.clear()
        begun = time.monotonic()
        assert transport.exchange({1: b"1", 2: b"2"}, 300.0) == {1: b"1!", 2: b"2!"}
        assert least <= slept[0] <= 0.6 * took
        took = time.monotonic() - begun
