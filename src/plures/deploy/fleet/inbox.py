"""Fixes for Flower's node, so that it handles one message at a time, answers each once, and leaves no leftovers.

Flower's node fetches a message, waits until *an* answer is there, sends it and fetches the next message. It offers the
work on it, a Flower task, before the whole message has arrived, and never checks which message an answer belongs to.
So if a run was stopped while a node fetched its message, the task stayed; the error that Flower wrote for it later was
sent as the answer to another message; and from then on the node sent every answer only after the next message had
arrived. To its coordinator it looked dead until it was restarted. Similarly, a node waited forever for a task that
ended before it took its message or while it handed over its answer.

Flower's task starter polls the node for tasks. Here each request waits until there is a task, so that there are few
requests and a task starts at once.

This file is loaded by :mod:`plures.deploy.fleet.programs` without the rest of plures. It changes the node's state and
the functions that fetch, offer and send.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import nodestate_factory
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR, InMemoryNodeState

LOOP, OFFER = "flwr.supernode.start_client_internal", "flwr.supernode.servicer.runtime.runtime_handlers"
LONGEST = 1.0
"""Longest time that a request for a task waits, in seconds."""


class Inbox(InMemoryNodeState):
    """A node's state.

    Attributes:
        whole: whether all parts of the current message have arrived.
        offered: set from a message's arrival until its task is claimed.
    """

    def __init__(self, object_store: ObjectStore) -> None:
        super().__init__(object_store)
        self.whole = True
        self.offered = threading.Event()

    def claim_task(self, task_id: int) -> str | None:
        """Claim a task, once its whole message has arrived."""
        self.offered.clear()
        return super().claim_task(task_id) if self.whole else None

    def get_messages_legacy(
        self, *, run_ids: Sequence[int] | None = None, is_reply: bool | None = None, limit: int | None = None
    ) -> Sequence[Message]:
        """Messages or answers. If no task is left that could still answer, the answer is an error."""
        over = is_reply is True and not self.working()
        found = super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)
        if found or not over or not (left := self.unanswered()):
            return found
        with self.lock_msg_store:
            for message in left:
                self.msg_store[message.metadata.message_id].is_retrieved = True
                self.record_message_processing_start(message.metadata.message_id)
            self._store_error_replies({message.metadata.run_id for message in left}, CLIENT_APP_CRASHED_ERROR)
        return super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)

    def working(self) -> bool:
        """Whether any task has not ended. Checks the newest first, because a node never forgets a task."""
        with self.lock_task_store:
            return any(task.status.status != Status.FINISHED for task in reversed(self.task_store.values()))

    def unanswered(self) -> list[Message]:
        """Messages to which no answer has been sent."""
        with self.lock_msg_store:
            messages = [entry.message for entry in self.msg_store.values()]
        return [message for message in messages if not message.metadata.reply_to_message_id]

    def drop(self) -> None:
        """Delete messages that arrived only in part, and their tasks, which have not started."""
        for task in self.get_tasks(statuses=[Status.PENDING]):
            self.finish_task(task.task_id, SubStatus.STOPPED, "its message did not come whole")
        for message in self.unanswered():
            self.delete_messages(message_ids=[message.metadata.message_id])
            self.object_store.delete(message.metadata.message_id)


class Parts:
    """The parts of an answer, which the task hands over one by one.

    Args:
        store: store that holds the parts.
        state: state of the node.
    """

    def __init__(self, store: ObjectStore, state: Inbox) -> None:
        self.store, self.state = store, state

    def get(self, part: str) -> bytes | None:
        """A part; empty if it has not arrived yet.

        Raises:
            LookupError: it will never arrive, because its task has ended.
        """
        over = not self.state.working()
        content = self.store.get(part)
        if content == b"" and over:
            raise LookupError("the task ended before it had handed over its answer")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def fetching(fetch: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wrap Flower's function that fetches a message, so that it leaves nothing of one that arrived only in part."""

    def fetched(*, state: Inbox, **given: Any) -> int | None:
        state.whole = False
        try:
            run = fetch(state=state, **given)
            if run is None:
                state.drop()
        finally:
            state.whole = True
        if run is not None:
            state.offered.set()
        return run

    return fetched


def offering(acquire: Callable[..., object]) -> Callable[..., object]:
    """Wrap Flower's function that hands out tasks, so that it waits for one."""

    def acquired(request: object, state: Inbox) -> object:
        state.offered.wait(LONGEST)
        return acquire(request, state)

    return acquired


def sending(send: Callable[..., None]) -> Callable[..., None]:
    """Wrap Flower's function that waits for an answer and sends it, to repeat until every message has its answer."""

    def sent(*, state: Inbox, object_store: ObjectStore, **given: Any) -> None:
        while True:
            send(state=state, object_store=Parts(object_store, state), **given)
            if not state.unanswered():
                return

    return sent


def install() -> None:
    """Apply these changes to the node in this process."""
    loop: Any = importlib.import_module(LOOP)
    offer: Any = importlib.import_module(OFFER)
    factory: Any = nodestate_factory
    offer.acquire_task = offering(offer.acquire_task)
    factory.InMemoryNodeState = Inbox
    loop._pull_and_store_message = fetching(loop._pull_and_store_message)
    loop._push_messages = sending(loop._push_messages)
