"""Flower as the transport: a ServerApp and a ClientApp around the server and the site.

All code that depends on Flower's interfaces is here. To Flower, a message is opaque bytes. One message a round serves
both training and evaluation, because Flower starts a process for each message. Flower splits a message into parts, and
each part costs one request from the sender to the SuperLink and one from the receiver: a record of bytes makes three
parts, an array five or more. So an array is used only for messages too long for one part.
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
"""The name of the message format, which Flower passes on."""
ONE_PART = 2**20
"""Largest message that travels in one part, in bytes."""
MIN_POLL_SECONDS, POLL_SECONDS_PER_NODE = 0.25, 0.01
"""Shortest time between two polls for an answer, in seconds: in all, and per node asked."""
POLL_SHARE, MAX_POLL_SECONDS = 0.1, 2.0
"""Polling costs the SuperLink more than a site's work costs the site. So the pause before the next poll grows with the
time waited so far: this share of it, and at most so many seconds."""
FIRST_POLL_SHARE = 0.6
"""The first poll comes after this share of the time until the first answer in the last exchange, and no later than
``MAX_POLL_SECONDS``."""
Arrival = tuple[int, bytes | str | BaseException]
"""A node, and its answer, the reason why there is none, or an error to raise."""

Config = Mapping[str, object]
"""The operator's settings: the run's configuration at the server, the node's at a site."""


class Answerer(Protocol):
    """Answers the server's messages at a site."""

    def answer(self, message: bytes) -> bytes:
        """The answer to a message. Never raises."""


def sealed(message: bytes) -> RecordDict:
    """Wrap a message for Flower."""
    if len(message) <= ONE_PART:
        return RecordDict({RECORD: ConfigRecord({STYPE: message})})
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(message),), STYPE, message)})})


def opened(content: RecordDict) -> bytes:
    """Unwrap a message from Flower.

    Raises:
        PluresError: if the content is not a message of plures.
    """
    record = content.get(RECORD)
    if isinstance(record, ArrayRecord) and ARRAY in record:
        return record[ARRAY].data
    if isinstance(record, ConfigRecord) and isinstance(message := record.get(STYPE), bytes):
        return message
    raise PluresError("what arrived is not a message of plures: run the same app on both sides")


class GridTransport:
    """Messages over a Flower grid; an address is the id of a node.

    Args:
        grid: given by Flower to the ServerApp.

    Attributes:
        arrived: called with the address of each answer as it arrives.
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
        """Poll for one node's answer until it is there or the deadline has passed.

        Each node has its own thread: if a node dies while sending, Flower waits minutes for the rest of its message.
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
        except Exception as error:  # Flower decodes the answer here, and a node can put anything into it
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
        conduct: carries out the run, given a transport and the run's configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(GridTransport(grid), context.run_config)

    return app
