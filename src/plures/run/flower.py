"""Flower carries the messages: a ServerApp and a ClientApp around what a server and a site do.

Everything that knows Flower's interfaces is here. A message is one array of bytes, for which Flower asks no more than
that it be carried; one message a round brings training and evaluation, because Flower starts a process for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from plures.errors import PluresError
from plures.run.remote import Transport

RECORD, ARRAY, KIND = "plures", "message", "train"
STYPE = "plures.safetensors"
POLL = 0.1
"""Seconds between looks for answers."""

Config = Mapping[str, object]
"""What the operator gave: the run's configuration at the server, the node's at a site."""


class Answerer(Protocol):
    """What answers at a site."""

    def answer(self, message: bytes) -> bytes:
        """The answer to a message; it does not raise."""


def sealed(message: bytes) -> RecordDict:
    """A message as Flower carries it."""
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(message),), STYPE, message)})})


def opened(content: RecordDict) -> bytes:
    """The message in what Flower carried."""
    record = content.get(RECORD)
    if not isinstance(record, ArrayRecord) or ARRAY not in record:
        raise PluresError("what arrived is no message of plures: let both sides run the same app")
    return record[ARRAY].data


class GridTransport:
    """Messages over a Flower grid; an address is the id of a node.

    Args:
        grid: given by Flower to the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def addresses(self) -> list[int]:
        return sorted(self.grid.get_node_ids())

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        out = [Message(sealed(body), node, KIND, ttl=deadline + 60) for node, body in messages.items()]
        waiting = dict(zip(self.grid.push_messages(out), messages, strict=True)) if out else {}
        found: dict[int, bytes | str] = {
            node: "Flower did not take its message" for i, node in waiting.items() if not i
        }
        waiting = {number: node for number, node in waiting.items() if number}
        end = time.monotonic() + deadline
        while waiting and time.monotonic() < end:
            self._collect(self.grid.pull_messages(list(waiting)), waiting, found)
            if waiting:
                time.sleep(POLL)
        return found

    def _collect(self, replies: Iterable[Message], waiting: dict[str, int], found: dict[int, bytes | str]) -> None:
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            try:
                found[node] = f"Flower: {reply.error.reason}" if reply.has_error() else opened(reply.content)
            except PluresError as error:
                found[node] = str(error)


def client_app(site: Callable[[Config], Answerer]) -> ClientApp:
    """A ClientApp whose answers come from a site.

    Args:
        site: makes the site from the node's configuration.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        answer = site(context.node_config).answer(opened(message.content))
        return Message(sealed(answer), reply_to=message)

    return app


def server_app(conduct: Callable[[Transport, Config], None]) -> ServerApp:
    """A ServerApp that conducts a run over Flower's nodes.

    Args:
        conduct: the run, from a transport and the run's configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(GridTransport(grid), context.run_config)

    return app
