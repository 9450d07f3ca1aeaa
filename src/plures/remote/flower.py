"""Flower carries the messages: a ServerApp and a ClientApp around what a server and a site do.

Everything that knows Flower's interfaces is here. A message is bytes, of which Flower asks no more than that they be
carried; one message a round brings training and evaluation, because Flower starts a process for each. Flower takes a
message apart, and every part is a request of its sender to the SuperLink and one of its receiver: a record of bytes
makes three parts, an array five or more. So an array carries only what is too long for one part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from queue import Empty, Queue
from threading import Thread
from typing import Protocol

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from plures.errors import PluresError
from plures.run.interrupt import SLICE

RECORD, ARRAY, KIND = "plures", "message", "train"
STYPE = "plures.safetensors"
"""The form of a message's bytes."""
ONE_PART = 2**20
"""Bytes of a message that travels in one part."""
MIN_POLL_SECONDS, POLL_SECONDS_PER_NODE = 0.25, 0.01
"""Seconds between looks for an answer: at least, and for each node that is asked."""
POLL_SHARE, MAX_POLL_SECONDS = 0.1, 2.0
"""A look costs the SuperLink more than a site's work costs the site: the next is after this part of the time so far, or
after so many seconds."""
FIRST_POLL_SHARE = 0.6
"""The first look is after this part of the time that the first answer took when sites were asked last, and no later
than ``MAX_POLL_SECONDS``."""
Arrival = tuple[int, bytes | str | BaseException]
"""A node and what came of its message."""

Config = Mapping[str, object]
"""What the operator gave: the run's configuration at the server, the node's at a site."""


class Answerer(Protocol):
    """What answers at a site."""

    def answer(self, message: bytes) -> bytes:
        """The answer to a message; it does not raise."""


def sealed(message: bytes) -> RecordDict:
    """A message as Flower carries it."""
    if len(message) <= ONE_PART:
        return RecordDict({RECORD: ConfigRecord({STYPE: message})})
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(message),), STYPE, message)})})


def opened(content: RecordDict) -> bytes:
    """The message in what Flower carried."""
    record = content.get(RECORD)
    if isinstance(record, ArrayRecord) and ARRAY in record:
        return record[ARRAY].data
    if isinstance(record, ConfigRecord) and isinstance(message := record.get(STYPE), bytes):
        return message
    raise PluresError("what arrived is no message of plures: let both sides run the same app")


class GridTransport:
    """Messages over a Flower grid; an address is the id of a node.

    Args:
        grid: given by Flower to the ServerApp.

    Attributes:
        arrived: is told the address of every answer as it comes.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.arrived: Callable[[int], None] = lambda address: None
        self._soonest = 0.0

    def addresses(self) -> list[int]:
        return sorted(self.grid.get_node_ids())

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        out = [Message(sealed(body), node, KIND, ttl=deadline + 60) for node, body in messages.items()]
        numbers = dict(zip(messages, self.grid.push_messages(out), strict=True)) if out else {}
        found: dict[int, bytes | str] = {n: "Flower did not take its message" for n, i in numbers.items() if not i}
        begin, arrived = time.monotonic(), Queue[Arrival]()
        end = begin + deadline
        pause = max(MIN_POLL_SECONDS, POLL_SECONDS_PER_NODE * len(numbers))
        first, self._soonest = min(FIRST_POLL_SHARE * self._soonest, MAX_POLL_SECONDS), 0.0
        for node in numbers.keys() - found.keys():
            given = (node, numbers[node], end, first, pause, arrived)
            Thread(target=self._await, args=given, daemon=True).start()
        while len(found) < len(numbers):
            left = max(0.0, end - time.monotonic())
            try:
                node, answer = arrived.get(timeout=min(left, SLICE))
            except Empty:
                if left > SLICE:
                    continue
                break
            if isinstance(answer, BaseException):
                raise answer
            found[node] = answer
            self._soonest = self._soonest or time.monotonic() - begin
            self.arrived(node)
        return found

    def _await(self, node: int, number: str, end: float, first: float, pause: float, arrived: Queue[Arrival]) -> None:
        """Look for one node's answer until it is there or the deadline is over.

        Each node has a thread of its own: if a node dies while it sends, Flower waits for the rest for minutes.
        """
        begin = time.monotonic()
        time.sleep(first)
        try:
            while (now := time.monotonic()) < end:
                for reply in self.grid.pull_messages([number]):
                    arrived.put((node, f"Flower: {reply.error.reason}" if reply.has_error() else opened(reply.content)))
                    return
                time.sleep(max(pause, min(MAX_POLL_SECONDS, POLL_SHARE * (now - begin))))
        except (OSError, httpx.HTTPError) as error:  # the SuperLink is gone: raised in the thread that asked
            arrived.put((node, error))
        except Exception as error:  # Flower reads a node's answer here, whatever the node put in it
            arrived.put((node, str(error) if isinstance(error, PluresError) else f"Flower cannot read it: {error!r}"))
        except BaseException as error:  # the run was stopped
            arrived.put((node, error))


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


def server_app(conduct: Callable[[GridTransport, Config], None]) -> ServerApp:
    """A ServerApp that conducts a run over Flower's nodes.

    Args:
        conduct: the run, from a transport and the run's configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(GridTransport(grid), context.run_config)

    return app
