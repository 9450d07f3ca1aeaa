"""Log the clients for which the server is waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from plures.deploy.journal import Journal
from plures.remote.sites import Transport

WAITING, ANSWERED = "waiting", "answered"


class Watched:
    """A transport that logs which clients are asked and which have answered.

    Args:
        transport: carries the messages.
        journal: where to log.
        where: returns the current address of every known client.

    Attributes:
        what: what the clients are asked for, for the log: a round, or a request at the beginning or the end.
    """

    def __init__(self, transport: Transport, journal: Journal, where: Callable[[], Mapping[str, int]]) -> None:
        self.transport, self.journal, self.where = transport, journal, where
        self.what: dict[str, object] = {}
        self._asked: dict[int, str] = {}

    def addresses(self) -> list[int]:
        return self.transport.addresses()

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        self._asked = {address: client for client, address in self.where().items() if address in messages}
        if self._asked:
            self.waiting(sorted(self._asked.values()), seconds=deadline)
        return self.transport.exchange(messages, deadline)

    def waiting(self, clients: Sequence[str], **details: object) -> None:
        """Log that the server is waiting for these clients."""
        self.journal.event(WAITING, clients=list(clients), **self.what, **details)

    def arrived(self, address: int) -> None:
        """Log that an answer arrived, valid or not; a node that has not identified itself is logged by its address."""
        known = self._asked.get(address)
        self.journal.event(ANSWERED, **({"node": address} if known is None else {"client": known}))
