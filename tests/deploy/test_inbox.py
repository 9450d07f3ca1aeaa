"""A node's messages: each is answered once, whatever happened to the previous one and to its task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import Status, SubStatus
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as loop

from plures.deploy.fleet.inbox import Inbox, fetching, offering, sending
from plures.remote.flower import opened, sealed

NODE = 7
CRASHED = "ClientApp stopped responding."


def message(body: bytes, run: int) -> Message:
    """A message as the SuperLink keeps it."""
    made = Message(sealed(body), metadata=Metadata(run, "", 1, NODE, "", "", time.time(), 600.0, "train"))
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def parts(whole: Message) -> dict[str, bytes]:
    """A message in the parts in which it travels."""
    return {name: part.deflate() for name, part in get_all_nested_objects(whole).items()}


@dataclass
class Node:
    """Flower's functions of a node, with a SuperLink and tasks that the test commands.

    Attributes:
        sent: the body, or the reason of an error, with which each message was answered, by the message's own body.
        stopped: runs that have ended.
        during: called while the parts of a message are fetched.
    """

    sent: list[tuple[bytes, bytes | str]] = field(default_factory=list)
    stopped: set[int] = field(default_factory=set)
    during: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.store = ObjectStoreFactory().store()
        self.state = Inbox(self.store)
        self.state.set_node_id(NODE)
        self.fetch, self.send = fetching(loop._pull_and_store_message), sending(loop._push_messages)
        self.bodies: dict[str, bytes] = {}
        self.coming: dict[str, bytes] = {}

    # --- the SuperLink ----------------------------------------------------------------------------------------------

    def fetched(self, body: bytes, run: int) -> bool:
        """Fetch a message; returns whether there was one."""
        given = message(body, run)
        contents, self.bodies[given.object_id] = parts(given), body
        self.state.store_run(Run.create_empty(run))

        def part(run: int, name: str) -> bytes:
            self.during()
            if run in self.stopped:
                raise RunNotRunningException
            return contents[name]

        whose = self.fetch(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (remove_content_from_message(given), get_object_tree(given)),
            get_run=lambda run: pytest.fail("the run is known"),
            get_fab=lambda digest, run: pytest.fail("the app is known"),
            pull_object=part,
            confirm_message_received=lambda run, number: None,
            trusted_entities=None,
        )
        return whose == run

    def answer(self) -> None:
        """Wait for an answer and send it."""
        self.send(state=self.state, object_store=self.store, send=self.take, push_object=self.take_part)

    def take(self, answer: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        if answer.metadata.run_id in self.stopped:
            raise RunNotRunningException
        self.to, self.root, self.coming = answer.metadata.reply_to_message_id, tree.object_id, {}
        if answer.has_error():
            self.sent.append((self.bodies[self.to], answer.error.reason))
            return set(), "session"
        self.whole = {one.object_id for one in iterate_object_tree(tree)}
        return set(self.whole), "session"

    def take_part(self, run: int, session: str, name: str, content: bytes) -> None:
        self.coming[name] = content
        if self.coming.keys() == self.whole:
            answer = inflate_object_from_contents(self.root, dict(self.coming))
            assert isinstance(answer, Message)
            self.sent.append((self.bodies[self.to], opened(answer.content)))

    # --- tasks ------------------------------------------------------------------------------------------------------

    def claimed(self) -> int | None:
        """The next task for the task starter, if there is one; it is marked as started."""
        for task in self.state.get_tasks(statuses=[Status.PENDING]):
            if self.state.claim_task(task.task_id):
                assert self.state.activate_task(task.task_id)
                return int(task.task_id)
        return None

    def take_message(self, run: int) -> Message:
        (taken,) = self.state.get_messages_legacy(run_ids=[run], is_reply=False, limit=1)
        self.state.record_message_processing_start(taken.metadata.message_id)
        return taken

    def work(self, body: bytes, run: int, share: float = 1.0) -> None:
        """Do a task to its end, or until this much of its answer has been handed over."""
        task = self.claimed()
        assert task is not None
        answer = Message(sealed(body), reply_to=self.take_message(run))
        answer.metadata.__dict__["_message_id"] = answer.object_id
        session, contents = self.state.start_session(run), parts(answer)
        self.state.record_message_processing_end(answer.metadata.reply_to_message_id)
        self.state.store_message_and_object_tree(remove_content_from_message(answer), get_object_tree(answer), session)
        for name, content in list(contents.items())[: int(share * len(contents))]:
            assert self.state.store_object(run, session, name, content)
        self.state.finish_task(task, SubStatus.COMPLETED if share == 1.0 else SubStatus.FAILED, "")


def test_a_message_is_answered() -> None:
    node = Node()
    for number in (b"1", b"2"):
        assert node.fetched(number, run=1)
        node.work(b"answer " + number, run=1)
        node.answer()
    assert node.sent == [(b"1", b"answer 1"), (b"2", b"answer 2")]
    assert not node.state.msg_store
    assert node.claimed() is None


def test_a_task_is_not_begun_before_its_message_is_whole() -> None:
    node, early = Node(), list[int | None]()
    node.during = lambda: early.append(node.claimed())
    assert node.fetched(b"1", run=1)
    assert early
    assert set(early) == {None}
    assert node.claimed() is not None


def test_nothing_is_left_of_a_message_whose_run_is_stopped_while_it_is_fetched() -> None:
    """Otherwise the error of its task is sent as the next message's answer, and every answer comes one message late."""
    node = Node(stopped={1})
    assert not node.fetched(b"1", run=1)
    assert node.claimed() is None
    assert not node.state.msg_store
    assert len(node.store) == 0
    for number in (b"2", b"3"):
        assert node.fetched(number, run=2)
        node.work(b"answer " + number, run=2)
        node.answer()
    assert node.sent == [(b"2", b"answer 2"), (b"3", b"answer 3")]


def test_a_late_answer_to_an_earlier_message_does_not_stand_for_the_next_one() -> None:
    node, earlier = Node(stopped={1}), message(b"1", run=1)
    late = Message(sealed(b"answer 1"), reply_to=earlier)
    late.metadata.__dict__["_message_id"] = late.object_id
    node.state._store_generated_message(late)
    node.state.store_message(late)
    assert node.fetched(b"2", run=2)
    task = threading.Timer(0.3, node.work, (b"answer 2", 2))
    task.start()
    node.answer()
    task.join()
    assert node.sent == [(b"2", b"answer 2")]
    assert not node.state.msg_store


@pytest.mark.parametrize("begun", [True, False], ids=["after", "before"])
def test_a_task_that_ends_without_an_answer_is_answered_for(begun: bool) -> None:
    """It may also have ended before it took its message, for which Flower waits forever."""
    node = Node()
    assert node.fetched(b"1", run=1)
    task = node.claimed()
    assert task is not None
    if begun:
        node.take_message(run=1)
    node.state.finish_task(task, SubStatus.FAILED, "killed")
    node.answer()
    assert node.sent == [(b"1", CRASHED)]
    assert node.fetched(b"2", run=1)
    node.work(b"answer 2", run=1)
    node.answer()
    assert node.sent[1:] == [(b"2", b"answer 2")]


def test_a_task_that_ends_while_it_hands_over_its_answer_holds_up_nothing() -> None:
    node = Node()
    assert node.fetched(b"1", run=1)
    node.work(b"answer 1", run=1, share=0.5)
    node.answer()
    assert node.sent == []
    assert node.fetched(b"2", run=1)
    node.work(b"answer 2", run=1)
    node.answer()
    assert node.sent == [(b"2", b"answer 2")]


def test_a_question_for_a_task_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plures.deploy.fleet.inbox.LONGEST", 30.0)
    node = Node()
    ask = offering(lambda request, state: node.claimed())
    begun = time.monotonic()
    message = threading.Timer(0.3, node.fetched, (b"1", 1))
    message.start()
    assert ask(None, node.state) is not None
    assert 0.3 <= time.monotonic() - begun < 30
    message.join()
    monkeypatch.setattr("plures.deploy.fleet.inbox.LONGEST", 0.1)
    assert ask(None, node.state) is None
