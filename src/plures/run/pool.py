"""Clients whose visits are done by other processes, each of which trains a chunk of the cohort at a time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plures.errors import PluresError
from plures.federation import Federation
from plures.method import BlockState
from plures.run.coordinator import Coordinator, Values, Work
from plures.run.engine import Engine
from plures.run.local import Local
from plures.run.packed import Packed
from plures.run.store import ClientStore
from plures.run.tasks import Executor, Given, GoneError, Place, in_turn
from plures.run.uploads import Answer

Visited = tuple[Answer, Values]


class Pool(Local):
    """Clients whose data is in this process and whose visits are tasks of others: ``Execution(processes=2)``.

    Chunks, batches and the order of sums are those of a single process, whichever process finishes first. The clients'
    state stays in this process, which also does everything outside a round's visits; so checkpoints do not depend on
    the pool, and a process that ends takes nothing with it but its work. Processes start with the first round. They
    end with the last round, with :func:`~plures.fit` or the run. The processes of a round that fails are not used
    again.

    Args:
        engine: does the local work that is done here.
        executor: does the visits.
    """

    def __init__(self, engine: Engine, executor: Executor) -> None:
        super().__init__(engine)
        self.executor = executor
        self._given: dict[str, Packed] = {}
        self._visiting = False

    def close(self) -> None:
        self.executor.end()

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        return Work(clients, self._visits(run, self.chunks(clients), server), server)

    def _visits(
        self, run: Coordinator[Any], chunks: list[list[int]], server: Mapping[str, BlockState]
    ) -> Iterator[Visited]:
        """The visits of some chunks, in their order."""

        def asked(number: int) -> Packed:
            rows = {leaf: run.store.get(leaf, chunks[number]) for leaf in run.stored_leaves()}
            return self.executor.pack((chunks[number], rows), "what clients hold")

        if self._visiting:  # a round that failed is still held by its error
            self.executor.end()
        self._visiting = True
        try:
            yield from in_turn(self.executor, visit, self.given(run, server), asked, len(chunks))
        except BaseException as error:
            codes = self.executor.end()
            if isinstance(error, GoneError):
                raise PluresError(f"round {run.round + 1}: {str(error) or ended(codes)}") from error
            raise
        self._visiting = False
        if run.round + 1 == run.training.rounds:
            self.executor.end()

    def given(self, run: Coordinator[Any], server: Mapping[str, BlockState]) -> Given:
        """What all visits of a round need: the data and the run, once, and the state of the round."""
        if not self._given:
            execution = replace(run.execution, processes=1, ray=None, clients_on_disk=None)
            facts = run.origin, run.setting, run.training, execution
            for what, apart in ((run.federation, True), (facts, False)):  # steps write to the network's parameters
                one = self.executor.pack(what, "the run", apart=apart)
                self._given[one.key] = one
        state = self.executor.pack((run.round, run.last, run.server, dict(server), run.turn), "the state of the run")
        return {**self._given, uuid.uuid4().hex: state}


def ended(codes: Sequence[int | None]) -> str:
    """What is said of processes that have ended."""
    return (
        f"a process of the pool ended (exit codes {list(codes)}); use fewer processes if memory ran out, and let a "
        "script start its work under: if __name__ == '__main__'"
    )


class Visitor:
    """A run as it is in a process that does its visits.

    Args:
        federation: its data.
        facts: what makes the run.
    """

    def __init__(self, federation: Federation, facts: tuple[Any, ...]) -> None:
        origin, setting, training, execution = facts
        known = origin.bound.verdicts.values()
        origin.bound.verdicts = {tuple(map(id, parts)): (parts, found) for parts, found in known}
        self.clients = Local(Engine(origin.bound, federation, training, execution, origin.seed))
        self.run = Coordinator(origin, self.clients, federation, setting, training, execution)
        self.initial = {leaf: origin.bound.initial[leaf.slot][leaf.path] for leaf in self.run.stored_leaves()}
        self.server: Mapping[str, BlockState] = {}
        self.at = ""

    def visit(self, at: str, state: tuple[Any, ...], chunk: list[int], rows: Values) -> Visited:
        """The visits of a chunk of clients in a round.

        Args:
            at: the key of the round's state.
            state: that state.
            chunk: the clients.
            rows: what they hold.
        """
        if self.at != at:
            self.run.round, self.run.last, self.run.server, self.server, self.run.turn = state
            self.run.store = ClientStore(self.initial, len(self.run.federation))
            self.at = at
        self.run.commit(chunk, rows)
        return self.clients.visit(self.run, chunk, self.server)


def visit(place: Place, keys: Sequence[str], asked: tuple[list[int], Values]) -> Visited:
    """The task of a pool: visits of a chunk of clients, from the data, the run, and the state of a round."""
    data, facts, state = keys
    visitor = place.made(f"{data} {facts}", lambda: Visitor(place.held[data], place.held[facts]))
    found: Visited = visitor.visit(state, place.held[state], *asked)
    return found
