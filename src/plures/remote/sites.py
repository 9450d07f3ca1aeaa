"""Registry of sites: address and reported facts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from plures.errors import PluresError
from plures.federation import Federation
from plures.method import Setting
from plures.remote.bounds import opened
from plures.remote.message import (
    ClientFacts,
    Order,
    clean,
    pack,
    room,
)
from plures.tasks import Task

RETRY_SECONDS = 30.0
"""Seconds until a site that could not be admitted is asked again."""
log = logging.getLogger(__name__)


class Transport(Protocol):
    """Carries messages to sites, each identified by an address."""

    def addresses(self) -> list[int]:
        """Addresses of the sites that can be reached now."""

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        """Send messages, and return the answers that arrive within ``deadline`` seconds, by address.

        A string instead of bytes says why there is no answer.
        """


class Sites:
    """Registry of sites: address and reported facts.

    Args:
        transport: carries messages.
        clients: names of the clients that belong to the federation.
        deadline: seconds to wait for a site to identify itself.
        tells: facts that the members agreed to report; others are dropped. ``None`` for all facts.
        task: what is predicted, which label counts must fit.

    Attributes:
        where: address of every client that can be reached: the last one at which it identified itself.
        met: the client that each address says it is. Signatures prove it (:mod:`plures.deploy.signing`).
        facts: the facts reported by every client that ever joined.
        measures: the metrics that every client will report on its validation examples.
        refused: addresses that are not admitted, and why.
    """

    def __init__(
        self,
        transport: Transport,
        clients: Sequence[str],
        deadline: float = 60.0,
        *,
        tells: Sequence[str] | None = None,
        task: Task | None = None,
    ) -> None:
        self.tells, self.task = tells, task
        self.transport, self.clients, self.deadline = transport, tuple(clients), deadline
        self.where: dict[str, int] = {}
        self.met: dict[int, str] = {}
        self.facts: dict[str, ClientFacts] = {}
        self.measures: dict[str, tuple[str, ...]] = {}
        self.refused: dict[int, str] = {}
        self._asked: dict[int, float] = {}

    def meet(self) -> None:
        """Ask sites that are not known yet to identify themselves."""
        present = self.transport.addresses()
        self.where = {client: address for client, address in self.where.items() if address in present}
        self.where = {self.met[address]: address for address in present if address in self.met} | self.where
        now = time.monotonic()
        new = [a for a in present if a not in self.met and now >= self._asked.get(a, now)]
        self._asked |= dict.fromkeys(new, now + RETRY_SECONDS)
        self.refused = {address: reason for address, reason in self.refused.items() if address in present}
        questions = {address: pack(Order(request="join")) for address in new}
        for address, answer in self.transport.exchange(questions, self.deadline).items():
            try:
                self._greet(address, questions[address], answer)
                self.refused.pop(address, None)
            except PluresError as error:
                self.refused[address] = str(error)
                log.warning("site %s is not admitted: %s", address, error)

    def _greet(self, address: int, question: bytes, answer: bytes | str) -> None:
        if isinstance(answer, str):
            raise PluresError(clean(answer))
        reply = opened(answer, question, room(1, len(self.task.names), len(self.tells or ())) if self.task else None)
        if reply.status != "done":
            raise PluresError(f"client {reply.client!r}: {reply.reason}")
        if reply.client not in self.clients or reply.facts is None:
            raise PluresError(f"client {reply.client!r} does not belong to this federation")
        facts = agreed(reply.client, reply.facts, self.task, self.tells)
        if self.facts.setdefault(reply.client, facts) != facts:
            log.warning("client %r reports other facts than when it joined; the first ones stay", reply.client)
        self.where[reply.client], self.met[address] = address, reply.client
        self.measures[reply.client] = reply.metrics
        log.info("client %r joined, with %d training examples", reply.client, facts.examples)

    @property
    def missing(self) -> list[str]:
        """Clients that have never joined."""
        return [client for client in self.clients if client not in self.facts]

    @property
    def absent(self) -> list[str]:
        """Clients that cannot be reached now."""
        return [client for client in self.clients if client not in self.where]


def agreed(client: str, facts: ClientFacts, task: Task | None, tells: Sequence[str] | None = None) -> ClientFacts:
    """The facts that a client reported, reduced to those that the members agreed on.

    Raises:
        PluresError: if an agreed fact is missing, or label counts do not fit classes and examples.
    """
    if tells is not None:
        columns = [name for name in tells if name not in ("examples", "labels")]
        lacking = [name for name in columns if facts.metadata.get(name) is None]
        if "labels" in tells and facts.labels is None and task is not None and task.counts(task.blank()) is not None:
            lacking.append("labels")
        if lacking:
            raise PluresError(f"client {client!r} does not tell {lacking[0]!r}, which the members agreed to tell")
        metadata = {name: facts.metadata[name] for name in columns}
        facts = facts.model_copy(
            update={"labels": facts.labels if "labels" in tells else None, "metadata": metadata},
        )
    if task is not None and facts.labels is not None:
        wrong = task.miscounted(facts.labels, facts.examples)
        if wrong is not None:
            raise PluresError(f"client {client!r} tells {wrong}: its site must check its data")
    return facts


def population(federation: Federation, reported: Sequence[ClientFacts]) -> Setting:
    """The setting of a run, from facts that clients at sites reported.

    Args:
        federation: the clients, without any rows, in the order of ``reported``.
        reported: the facts of each client.

    Raises:
        PluresError: if the numbers of clients differ, or facts do not fit the federation's task.
    """
    if len(reported) != len(federation):
        raise PluresError(f"facts of {len(reported)} clients are given, and the federation has {len(federation)}")
    for client, one in zip(federation.clients, reported, strict=True):
        agreed(client, one, federation.task)
    columns = list(dict.fromkeys(column for one in reported for column in one.metadata))
    metadata = {column: tuple(one.metadata.get(column) for one in reported) for column in columns}
    setting = Setting.of(replace(federation, metadata=metadata))
    facts = dict(setting.facts)
    facts["examples"] = torch.tensor([one.examples for one in reported]).to(facts["examples"])
    private = set()
    if "labels" in facts:
        counts = [one.labels for one in reported if one.labels is not None]
        if len(counts) == len(reported):
            facts["labels"] = torch.tensor(counts).to(facts["labels"])
        else:
            private.add("labels")
    return replace(setting, facts=facts, private=frozenset(private))
