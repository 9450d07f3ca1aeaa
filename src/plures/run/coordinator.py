"""The one round loop: broadcast, local work, upload, combine; wherever the clients are."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.entropy import Entropy
from plures.errors import PluresError
from plures.federation import Federation
from plures.method import MEMBERSHIP, Block, BlockState, Bound, Cohort, Leaf, Look, Probe, Setting, Share, View
from plures.method.channel import LOSS, OBJECTIVE
from plures.models import Leaves, Marked
from plures.privacy import Spent
from plures.run.cost import downloaded, loads, traffics
from plures.run.downlink import DOWN, received, remembered, sent_out
from plures.run.engine import Stack
from plures.run.execution import Execution
from plures.run.origin import Origin
from plures.run.participation import may_be_empty
from plures.run.randomness import fold, name_key, unit
from plures.run.store import ClientStore
from plures.run.training import Training
from plures.run.turn import Load, Memory, Occasion, Paced, Turn
from plures.run.uploads import Answer, Uploads, followed, mass

Values = Mapping[Leaf, Tensor]
"""Leaves of some clients, ``(clients, ...)`` each."""


@by_content
@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    Attributes:
        round: number of rounds finished, from 1.
        cohort: names of the clients that took part; none in some rounds of :class:`~plures.run.Poisson`,
            and where too few are left for a secure sum.
        loss: mean training loss over the cohort, before the combination: the task's loss (cross-entropy, or the squared
            error summed over outputs) without penalties and other terms of a method, averaged over the steps of the
            schedule's last phase that trains something. It is the loss of the phase's slot (the first one that it
            trains), from a forward pass with that slot or marked as being for it (``keep=``): for APFL the loss of the
            global model, for Per-FedAvg that of the model before its adaptation. A phase without such a pass reports
            the loss of another slot that it trains or keeps (theta for pFedMe); one without any makes an extra pass.
        objective: mean of what the phase minimises, over the same steps. It equals ``loss`` if that is the task loss,
            and need not be a loss at all: for Per-FedAvg only its gradient is meaningful. Both are NaN without clients.
        bytes_up: bytes that clients sent to the server, including gradients that it asked for.
        bytes_down: bytes that clients received.
        seconds: wall time of the round.
        left_out: clients that were asked but whose work does not count, each with the reason.
        hours: simulated time of the round; ``None`` without a clock (:class:`~plures.run.Clocked`).
        joules: energy of all clients' devices in the round; ``None`` without a clock.
    """

    round: int
    cohort: tuple[str, ...]
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    objective: float = float("nan")
    hours: float | None = None
    joules: float | None = None


class BrokenError(PluresError):
    """A round that broke the model.

    Attributes:
        round: number of the round, from 1.
        client: the client with the longest update in it.
    """

    def __init__(self, round: int, client: str, what: str) -> None:
        super().__init__(f"round {round} broke the model: {what}; the longest update was that of client {client!r}")
        self.round, self.client = round, client


@dataclass(frozen=True)
class Moved:
    """How far the uploads of a round moved from what was sent out; known only where clients are not trusted.

    Attributes:
        by: L2 norm of each client's change, by client name.
        sent: L2 norm of what was sent out.
    """

    by: Mapping[str, float] = field(default_factory=dict)
    sent: float = 0.0

    def broken(self, round: int, what: str) -> PluresError:
        """The error for a round that is rejected; it names the client whose upload moved farthest, if that is known."""
        if not self.by:
            return PluresError(f"round {round} broke the model: {what}; a secure sum does not say by whose upload")
        return BrokenError(round, max(self.by, key=lambda name: self.by[name]), what)

    def insist(self, round: int, server: Mapping[str, BlockState], memory: Mapping[str, Leaves]) -> None:
        """Reject a round whose result is not finite, before anything is changed."""
        for name, kept in server.items():
            for leaf, value in {**kept.values, **memory[name]}.items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise self.broken(round, f"its combined uploads are not finite in {leaf!r}")


@dataclass(frozen=True)
class Work:
    """The local work of a round.

    Attributes:
        clients: positions of the clients that did it, in increasing order.
        answers: for each chunk of clients, what they send, and what they keep if the round counts.
        server: what the server keeps, updated with the choices that clients made themselves.
        left_out: clients that were asked but do not count, by name, each with the reason.
        moved: how far each upload moved; ``None`` where clients are trusted.
    """

    clients: list[int]
    answers: Iterable[tuple[Answer, Values]]
    server: Mapping[str, BlockState]
    left_out: Mapping[str, str] = field(default_factory=dict)
    moved: Moved | None = None


class Threatening(Protocol):
    """Hostile clients of a simulation (:class:`plures.threat.Threat`)."""

    def hostile(self, clients: tuple[str, ...]) -> list[int]:
        """Positions of the hostile clients among all of these names."""

    def poisoned(self, federation: Federation) -> Federation:
        """The federation that trains."""

    def forged(self, run: Coordinator[Any], work: Work) -> Work:
        """The work of a round as it arrives."""

    def success(self, run: Any, *, shared: bool = False) -> dict[str, float]:
        """How often their backdoor opens, by honest client; empty without one, or without a whole shared model."""


class Clients(Protocol):
    """The clients of a run, which do its local work, wherever they are.

    They read the coordinator, which changes only when a round counts.

    Attributes:
        alone: whether each client chooses among the models of a share itself, if the share allows it.
        apart: whether they are elsewhere and keep what they received, so that they can be sent what has changed.
        entropy: random bytes that only the client knows, at its site; ``None`` in a simulation, and at the server.
    """

    @property
    def alone(self) -> bool: ...

    @property
    def apart(self) -> bool: ...

    @property
    def entropy(self) -> Entropy | None: ...

    def stored_leaves(self, bound: Bound) -> list[Leaf]:
        """Leaves of individual clients that come back with the answers, for the coordinator to keep between rounds."""

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        """Have clients do the local work of a round.

        Args:
            run: the coordinator, before the round.
            clients: the cohort, in increasing order.
            server: the state that the server sends from.
        """

    def unmask(self, run: Coordinator[Any], came: list[int], like: Leaves) -> Leaves:
        """The masks in a secure sum of the uploads that came, from what those clients reveal.

        Args:
            run: the coordinator.
            came: the clients whose uploads are in the sum, in increasing order.
            like: zeros of the sum, int32 ``(1, ...)``.

        Raises:
            PluresError: if too few came.
        """

    def held(self, run: Coordinator[Any], clients: list[int], *, squared: bool = False) -> Tensor:
        """Training loss of some clients with what they hold, or the root mean square over examples, ``(clients,)``."""

    def losses(self, run: Coordinator[Any], clients: list[int], rows: int, share: Share) -> Tensor:
        """Training loss of some clients with each of the first ``rows`` models of a share, ``(rows, clients)``."""

    def gradients(self, run: Coordinator[Any], clients: list[int]) -> tuple[Tensor, int]:
        """Gradients of some clients' training losses at the initial model, ``(clients, d)``, and the bytes sent.

        They are taken with respect to the leaves that travel; the gradient of a personal leaf stays with the client.
        """


@brief
@dataclass(frozen=True)
class Made:
    """The result of combining the clients' work, before the round counts.

    Attributes:
        server: what the server keeps.
        memory: what its steps remember.
        stays: what stays with the clients, a chunk at a time.
        loss: mean task loss over the clients that report it.
        objective: mean of what they minimised.
        nbytes: bytes of what they sent.
    """

    server: dict[str, BlockState]
    memory: dict[str, Leaves]
    stays: list[tuple[list[int], Values]]
    loss: float
    objective: float
    nbytes: int


C = TypeVar("C", bound=Clients)


class Coordinator(Generic[C]):
    """What the server of a run keeps, and the rounds that change it, wherever the clients are.

    Args:
        origin: what the run starts from.
        clients: the clients that do the work, in this process (:class:`~plures.run.local.Local`) or at sites.
        federation: the clients, with their data if it is in this process.
        setting: facts about the clients.
        training: local work and number of rounds.
        execution: how the clients use their machine.

    Attributes:
        threat: hostile clients of a simulation; ``None`` for none.
        given: the federation as it was given, before hostile clients poisoned their data.
        bound: the method, resolved against its network.
        held: which part of the network each client holds; ``None`` if all hold all of it.
        round: number of rounds finished.
        server: what the server keeps of every block.
        memory: what the server's step of every block remembers, and what it has left out of downloads.
        moves: ``(moves, 4)`` all changes of cluster: round, number of the block, client, new cluster.
        last: ``(clients,)`` number of rounds finished when each last took part, 0 for never.
        store: leaves of individual clients that are kept here between rounds.
        moved: how far the uploads moved in the last round that counted.
        trained_with: for newcomers, the run that they join.
        torn: whether the leaves that clients keep were written for only some of them (:meth:`insist_whole`).
        turn: what the current round asks of whom.
        pace: what a :class:`~plures.run.turn.Paced` participation remembers; ``None`` for other rules.
        past: what the server kept after earlier rounds, as long as clients are at work that began from it.
    """

    def __init__(
        self,
        origin: Origin,
        clients: C,
        federation: Federation,
        setting: Setting,
        training: Training,
        execution: Execution,
    ) -> None:
        self.origin, self.clients, self.federation, self.setting = origin, clients, federation, setting
        self.threat: Threatening | None = None
        self.given = federation
        self.training, self.execution = training, execution
        self.bound, self.seed, self.participation = origin.bound, origin.seed, origin.participation
        self.method = self.bound.method
        if self.bound.line.summed and not may_be_empty(origin.participation) and len(origin.asked(0)) < 2:
            raise PluresError("a secure sum of one client hides nothing: let two or more take part in each round")
        self.held = self.bound.holding(setting)
        self.trained_with: Coordinator[Any] | None = None
        self._probed = 0
        self._load: Load | None = None
        self.begin()

    def begin(self) -> None:
        """Reset to the state before the first round."""
        self.round, self.torn = 0, False
        self.last = torch.zeros(len(self.setting), dtype=torch.int64)
        self.moves = torch.zeros((0, 4), dtype=torch.int64)
        self.moved, self.turn = Moved(), Turn([])
        self.pace = self.participation.start(self.setting) if isinstance(self.participation, Paced) else None
        self.past: dict[int, Mapping[str, BlockState]] = {}
        self.server = {block.name: self.origin.block_state(block) for block in self.served()}
        self.memory = {block.name: self.origin.memory(block, self.server[block.name]) for block in self.served()}
        self.memory |= {DOWN: remembered(self.bound, self.clients.apart)} if self.bound.down.stages else {}
        held = {leaf: self.bound.initial[leaf.slot][leaf.path] for leaf in self.stored_leaves()}
        self.store = ClientStore(held, len(self.federation), self.execution.clients_on_disk)

    @property
    def device(self) -> torch.device:
        """The device of the leaves."""
        return self.federation.inputs.device

    @property
    def participated(self) -> Tensor:
        """Which clients have taken part in a round so far, ``(clients,)``."""
        return self.last > 0

    @property
    def never(self) -> Tensor:
        """Positions of the clients that have not taken part yet."""
        return (self.last == 0).nonzero().squeeze(1)

    @property
    def membership(self) -> dict[str, Tensor]:
        """For every clustered block, the model that each client uses, ``(clients,)``."""
        return {name: kept.extra[MEMBERSHIP] for name, kept in self.server.items() if MEMBERSHIP in kept.extra}

    def history(self) -> list[tuple[int, str, str, int]]:
        """All changes of cluster: round (from 0), block, client, and the new cluster."""
        blocks, clients = self.bound.blocks, self.setting.clients
        return [(r, blocks[block].name, clients[client], to) for r, block, client, to in self.moves.tolist()]

    def served(self) -> list[Block]:
        """The blocks that the server keeps state for."""
        return [block for block in self.bound.blocks if block.share.served]

    def stored_leaves(self) -> list[Leaf]:
        """Leaves of individual clients that are kept here between rounds."""
        return self.clients.stored_leaves(self.bound)

    def commit(self, clients: list[int], stays: Values) -> None:
        """Store what some clients hold from now on."""
        for leaf, rows in stays.items():
            self.store.put(leaf, clients, rows)
        self.store.mark(clients)

    def insist_whole(self) -> None:
        """Refuse to continue after a round whose leaves were written for only some clients, as on a full disk."""
        if self.torn:
            raise PluresError(
                f"round {self.round + 1} was written for some clients and not for others (see the earlier error): "
                "resume from a checkpoint, or start the run again"
            )

    def forget(self, client: int) -> None:
        """Record that a client has lost its personal state and starts afresh."""
        self.last[client] = 0

    def gradients(self, clients: list[int]) -> Tensor:
        """Gradients of some clients at the initial model, ``(clients, d)``; see :meth:`Clients.gradients`."""
        found, sent = self.clients.gradients(self, clients)
        self._probed += sent
        return found

    def losses(self, clients: list[int], rows: int, share: Share) -> Tensor:
        """Losses of some clients, ``(rows, clients)``; see :meth:`Clients.losses`."""
        return self.clients.losses(self, clients, rows, share)

    def choose(self, wanted: list[int]) -> dict[str, BlockState]:
        """Decide before a round which rows of every block the clients receive."""
        who = torch.tensor(wanted, dtype=torch.int64)
        entropy = self.clients.entropy
        cohort = Cohort(self.round, who, self.setting, self.participated, self.draw, self.key, entropy=entropy)
        chosen = {}
        for block in self.served():
            share, kept = block.share, self.server[block.name]
            gradients = self.gradients if share.probes else unannounced
            probe = Probe(partial(self.losses, share=share), gradients)
            nobody = not wanted and not share.probes
            theirs = share.alone and self.clients.alone
            chosen[block.name] = kept if theirs or nobody else share.choose(kept, cohort, probe)
        return chosen

    # --- the round --------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[RoundRecord]:
        """Run all remaining rounds, one at a time. Each round is done completely or not at all."""
        while self.round < self.training.rounds:
            yield self.step()

    def step(self) -> RoundRecord:
        """One round."""
        begun = time.perf_counter()
        self.insist_whole()
        turn, pace = self.next_turn()
        wanted, left = turn.clients, dict(turn.left_out)
        if len(wanted) < (least := self.bound.line.enough(len(self.asked(self.round)))):
            reason = f"{len(wanted)} clients stayed to the end, and {least} must for a secure sum"
            wanted, left = [], {self.setting.clients[i]: reason for i in wanted}
        self.turn = turn
        chosen = self.choose(wanted)
        memory = {name: followed(kept, self.memory[name]) for name, kept in chosen.items()}
        began = {**self.past, self.round: self.server}
        work = self._work(wanted, {name: replace(kept, copied=()) for name, kept in chosen.items()}, began)
        work = self.arriving(work)
        useful = self._useful(turn, began)
        try:
            made = self._combined(work, memory)
        except (RuntimeError, ArithmeticError) as error:
            if work.moved is None:
                raise
            what = f"its uploads cannot be combined ({type(error).__name__})"
            raise work.moved.broken(self.round + 1, what) from error
        if work.moved is not None:
            work.moved.insist(self.round + 1, made.server, made.memory)
            self.moved = work.moved
        self.torn = True
        for clients, stays in made.stays:
            self.commit(clients, stays)
        self._note(made.server)
        server, owed = sent_out(self.bound, chosen, made.server, self.memory.get(DOWN, {}), self.key(DOWN))
        self.server, self.memory = server, made.memory | ({DOWN: owed} if self.bound.down.stages else {})
        before = self.last[work.clients]
        missed = torch.where(before > 0, self.round + 1 - before, 0)
        self.past = {version: began[version] for version in sorted(turn.needed)}
        self.pace = pace if pace is None else self._paced().learned(pace, turn, useful)
        self.round += 1
        self.last[work.clients] = self.round
        self.torn = False
        down = received(self.bound, downloaded(self.bound), missed)
        if self.held is not None:
            down = sum(each for _, each in traffics(self.bound, self.held, work.clients))
        return RoundRecord(
            self.round,
            tuple(self.setting.clients[i] for i in work.clients),
            made.loss,
            made.nbytes + self._probed,
            down,
            time.perf_counter() - begun,
            {**work.left_out, **left},
            made.objective,
            turn.hours,
            turn.joules,
        )

    def next_turn(self) -> tuple[Turn, Memory | None]:
        """What the next round asks of whom, and what its participation then remembers."""
        self._probed = 0
        if self.pace is None:
            return Turn(self.cohort(self.round)), None
        return self._paced().turn(self.pace, self.known())

    def known(self) -> Occasion:
        """What a paced participation may know before a round."""
        return Occasion(self.setting, self.seed, self.round, self.load, partial(self.clients.held, self))

    def load(self) -> Load:
        """What a visit costs each client."""
        if self._load is None:
            self._load = loads(self.bound, self.federation, self.training)
        return self._load

    def _paced(self) -> Paced:
        assert isinstance(self.participation, Paced)
        return self.participation

    def at(self, version: int, server: Mapping[str, BlockState]) -> Self:
        """This coordinator as it was after an earlier round; what individual clients keep is as it is now."""
        then = copy.copy(self)
        then.round, then.server = version, dict(server)
        return then

    def groups(self, clients: list[int]) -> list[tuple[int, list[int]]]:
        """Some clients of a round by the version that they began from, the current one first."""
        versions = {client: self.turn.versions.get(client, self.round) for client in clients}
        every = sorted({*versions.values()}, reverse=True)
        return [(version, [client for client in clients if versions[client] == version]) for version in every]

    def _work(
        self, clients: list[int], server: Mapping[str, BlockState], began: Mapping[int, Mapping[str, BlockState]]
    ) -> Work:
        """The local work of a round, from the models that its clients began with."""
        groups = self.groups(clients)
        if all(version == self.round for version, _ in groups):
            return self.clients.work(self, clients, server)

        def answers() -> Iterator[tuple[Answer, Values]]:
            for version, some in groups:
                then = self if version == self.round else self.at(version, began[version])
                sent = server if version == self.round else began[version]
                yield from self.clients.work(then, some, sent).answers

        return Work(clients, answers(), server)

    def _useful(self, turn: Turn, began: Mapping[int, Mapping[str, BlockState]]) -> Tensor | None:
        """How useful the examples of a round's clients are, if its participation wants to know, ``(clients,)``."""
        if self.pace is None or not self._paced().utility:
            return None
        found = torch.zeros(len(turn.clients), dtype=torch.float64)
        place = {client: number for number, client in enumerate(turn.clients)}
        for version, some in self.groups(turn.clients):
            then = self if version == self.round else self.at(version, began[version])
            losses = self.clients.held(then, some, squared=True).double().cpu()
            found[[place[client] for client in some]] = losses * self.examples(some).cpu()
        return found

    def arriving(self, work: Work) -> Work:
        """The work of a round as it arrives: that of all clients, or in a simulation with attackers what they forge."""
        return work

    def _combined(self, work: Work, memory: dict[str, Leaves]) -> Made:
        """Combine the work of a round; the coordinator is not changed yet."""
        server, clients = dict(work.server), work.clients
        who = torch.tensor(clients, dtype=torch.int64)
        hidden = None if self.origin.secret is None else self.hidden
        cohort = Cohort(self.round, who, self.setting, self.participated, self.draw, self.key, hidden=hidden)
        began = {client: (self.past[v], self.turn.scales.get(client, 1.0)) for client, v in self.turn.versions.items()}
        uploads = Uploads(self.bound, server, clients, self.examples(clients), began, self.held)
        losses, objectives, kept = [], [], []
        for answer, stays in work.answers:
            losses.append(answer.sent[LOSS][""])
            objectives.append(answer.sent[OBJECTIVE][""])
            kept.append((answer.clients, stays))
            uploads.add(answer)
        combined, remembered = uploads.combined(cohort, memory, self._unmasked(clients, uploads.total))
        loss, objective = (float(torch.cat(each).mean()) if each else math.nan for each in (losses, objectives))
        return Made(server | combined, memory | remembered, kept, loss, objective, uploads.nbytes)

    def _unmasked(self, came: list[int], total: Leaves) -> tuple[Leaves, float] | None:
        """The masks in a secure sum, and the joint weight of all clients that were asked; ``None`` without a sum.

        Nobody comes to a sum if too few are left.
        """
        if not self.bound.line.summed or not came:
            return None
        masks = self.clients.unmask(self, came, {k: torch.zeros_like(t) for k, t in total.items()})
        return masks, self.everybody()

    def everybody(self) -> float:
        """The joint weight in a secure sum of all clients that are asked in this round."""
        examples = self.origin.setting.facts["examples"][self.asked(self.round)]
        return float(mass(self.bound, examples.to(self.device, torch.float64)).sum())

    def cohort(self, round: int) -> list[int]:
        """Positions of the clients of a round, in increasing order."""
        return self.origin.cohort(round)

    def asked(self, round: int) -> list[int]:
        """Those of a round before simulated drop-outs, in increasing order."""
        return self.origin.asked(round)

    def examples(self, clients: list[int]) -> Tensor:
        """Training examples of some clients, ``(clients,)`` in double precision."""
        return self.setting.facts["examples"][clients].to(self.device, torch.float64)

    def draw(self, name: str, count: int) -> Tensor:
        """Uniform numbers of this round, ``(count,)``."""
        places = np.arange(count, dtype=np.uint64)
        return torch.from_numpy(unit(self.seed, self.round, name_key(f"server {name}"), places))

    def key(self, name: str, round: int | None = None) -> int:
        """A random key of this round, or of another one; in a federation of sites a secret of the server."""
        number = self.round if round is None else round
        if self.origin.secret is not None:
            return self.origin.secret.number("key", name, number)
        return int(fold(self.seed, number, name_key(f"server key {name}"))) >> 1

    def hidden(self, name: str, round: int) -> Entropy:
        """Random bytes of a round that only the server knows."""
        assert self.origin.secret is not None
        return self.origin.secret.of("hidden", name, round)

    def spent(self) -> Spent | None:
        """What this run's rounds so far have spent of differential privacy; ``None`` if its method has none."""
        return None if self.origin.plan is None else self.origin.plan.spent(self.round)

    def _note(self, server: Mapping[str, BlockState]) -> None:
        """Record which clients changed cluster."""
        for number, block in enumerate(self.bound.blocks):
            if block.name in self.membership:
                new = server[block.name].extra[MEMBERSHIP]
                who = (new != self.membership[block.name]).nonzero().squeeze(1)
                fixed = torch.tensor([self.round, number]).expand(len(who), 2)
                self.moves = torch.cat([self.moves, torch.cat([fixed, torch.stack([who, new[who]], 1)], 1)])

    # --- what clients see of each other -----------------------------------------------------------------------

    def seen(self, share: View, who: Tensor, names: list[str], states: Stack) -> Leaves:
        """What some clients see of the models that this server keeps.

        Args:
            share: the view.
            who: ``(clients,)`` positions of the clients that look, -1 for newcomers.
            names: their names.
            states: what they hold, as far as the view reads it.
        """
        source = [leaf for b in self.bound.blocks if b.slot == share.of and b.share.served for leaf in b.leaves]
        kept = {leaf: t for kept in self.server.values() for leaf, t in kept.values.items()}
        rows = {leaf.path: kept[str(leaf)] for leaf in source}
        rows = {p: t.expand(len(self.setting), *t.shape[1:]) for p, t in rows.items()}
        rows = Marked(rows, self.bound.network.fixed)

        def draw(name: str) -> Tensor:
            keys = np.array([name_key(client) for client in names], dtype=np.uint64)
            others = np.arange(len(self.setting), dtype=np.uint64)
            return torch.from_numpy(unit(self.seed, keys[:, None], self.round, name_key(name), others[None]))

        return share.seen(Look(who, rows, states, self.setting, self.round, draw))


def unannounced(clients: list[int]) -> Tensor:
    """Refuse gradients to a share that did not declare that it needs them, as sites would."""
    raise PluresError("a share asks for gradients at the initial model and does not say so: set probes = True in it")
