"""A run: a method in training over clients in this process. Clients that no round has drawn are served as newcomers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, SupportsIndex

import torch
from torch import Tensor, nn

from plures.brief import brief
from plures.entropy import Entropy
from plures.errors import PluresError
from plures.federation import Federation
from plures.method import BlockState, Known, Method, Setting, Sized
from plures.models import ModelFactory
from plures.run.choose import choose
from plures.run.coordinator import Threatening, Work
from plures.run.deployed import Deployed
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.features import with_features
from plures.run.local import Local
from plures.run.machine import Machine
from plures.run.onboard import onboard
from plures.run.origin import Origin
from plures.run.participation import PARTICIPATIONS, Participation
from plures.run.pool import Pool
from plures.run.processes import Processes
from plures.run.rays import Rays
from plures.run.rehearse import rehearse
from plures.run.tasks import Executor
from plures.run.timed import timed
from plures.run.training import Training
from plures.run.turn import Paced
from plures.signature import checked


@checked
class Run(Deployed):
    """A federation, a model and a method in training, with the clients in this process.

    Args:
        federation: the clients and their data.
        model: a factory of modules, called with the seed set; or a module, whose values start the run.
        method: what to run.
        training: local work and number of rounds.
        participation: who takes part in each round.
        seed: root of initial values, batches, cohorts and dropout.
        execution: how to use the machine; what is ``auto`` is measured here, before the first round.
        population: facts about all clients, if the federation holds only some of them, as at a site.
        machine: measurements and compiled steps to share with other runs of this process.
        threat: hostile clients (:class:`plures.threat.Threat`); ``None`` for none.
        entropy: random bytes that nobody else knows, for the noise of a site's only client; default: noise follows from
            the seed, as it does in a simulation.

    Attributes:
        execution: the settled execution.
        store: the clients' personal leaves.

    Examples:
        >>> heart, method = plures.load("heart"), plures.METHODS["ditto"](lam=0.1)
        >>> run = plures.Run(heart, plures.default_model(heart), method, plures.Training(rounds=3))
        >>> [record.round for record in run.rounds()]
        [1, 2, 3]
        >>> run.predictors([0, 3])["head.weight"].shape
        torch.Size([2, 2, 64])
    """

    def __init__(
        self,
        federation: Federation,
        model: nn.Module | ModelFactory,
        method: Annotated[Method, "a Method, such as plures.methods.ditto(lam=0.1)"],
        training: Training | None = None,
        *,
        participation: Annotated[Participation | None, PARTICIPATIONS] = None,
        seed: int = 0,
        execution: Execution | None = None,
        population: Setting | None = None,
        machine: Machine | None = None,
        threat: Threatening | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        wanted, training = execution or Execution(), training or Training()
        data = (federation if threat is None else threat.poisoned(federation)).to(wanted.torch_device, wanted.dtype)
        check_examples(data)
        setting, local = timed(Setting.of(data, population), participation, training), population is not None
        origin = Origin.of(method, model, population or setting, data, wanted.dtype, participation, seed, local=local)
        origin = origin.counting(training)
        if not local:
            rehearse(origin.bound, data, training, wanted, seed, setting)
        machine = Machine() if machine is None else machine
        executor = executor_of(wanted, machine)
        wanted = wanted if executor is None else replace(wanted, processes=executor.count)
        size = -(-(len(data) if local else origin.size) // wanted.side)
        bound, seen = origin.bound, data
        if not local:
            bound, seen, wanted = with_features(bound, data, training, wanted, seed, setting, origin.size)
        settled = choose(bound, seen, training, wanted, seed, size, machine)
        engine = Engine(bound, seen, training, settled, seed, machine, entropy)
        clients = Local(engine) if executor is None else Pool(engine, executor)
        super().__init__(origin, clients, data, setting, training, settled)
        if isinstance(self.participation, Paced):
            if threat is not None and self.participation.stale:
                raise PluresError(
                    "buffered aggregation and attacks: a forged upload is computed from those of one round, and these "
                    "arrive one after the other; leave one out"
                )
            self.participation.check(self.bound, self.known())
        if threat is not None:
            self.threat, self.given = threat, federation.to(wanted.torch_device, wanted.dtype)
        self._kept: _Kept | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        raise PluresError(
            "a Run trains in this process and cannot be pickled; keep it in a file with plures.fit(run, title, "
            "checkpoint=...), or its results with plures.RunFolder"
        )

    def __copy__(self) -> Run:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def on(self, federation: Federation, setting: Setting) -> Self:
        other = super().on(federation, setting)
        other._kept = None
        return other

    def arriving(self, work: Work) -> Work:
        return work if self.threat is None else self.threat.forged(self, work)

    def deployed(self, clients: list[int]) -> Stack:
        """What some clients predict with: one slot with the personal model, or their whole state if it is composed.

        Clients that have not taken part yet have nothing of their own, nor have those that told a random choice of a
        model and keep nothing. From the first round on they are served as
        newcomers (:func:`~plures.run.onboard.onboard`); what is stored for them does not change.

        Where clients train before they predict, what they then predict with is kept as long as the run stays in its
        state, up to :data:`READY` bytes.
        """
        if not self.bound.method.predictor.preparation:
            return self._deployed(clients)
        stacks, key = self._now().stacks, tuple(clients)
        if (found := stacks.get(key)) is None:
            found = self._deployed(clients)
            if sum(nbytes(stack) for stack in (*stacks.values(), found)) <= READY:
                stacks[key] = found
        return {slot: dict(leaves) for slot, leaves in found.items()}

    def _deployed(self, clients: list[int]) -> Stack:
        anew = self._anew(clients)
        if not bool(anew.any()):
            return super().deployed(clients)
        new = self._newcomers([clients[i] for i in anew.nonzero().flatten().tolist()])
        if bool(anew.all()):
            return new
        own = super().deployed([i for i, fresh in zip(clients, anew, strict=True) if not fresh])
        where = torch.cat([(~anew).nonzero(), anew.nonzero()]).squeeze(1).argsort().to(self.device)
        return {s: {p: torch.cat([t, new[s][p]])[where] for p, t in leaves.items()} for s, leaves in own.items()}

    def _anew(self, clients: list[int] | Tensor) -> Tensor:
        """Which of some clients are served as newcomers, ``(clients,)``."""
        alike = not self.stored_leaves() and all(
            isinstance(b.share, Known | Sized) or b.share.common for b in self.bound.blocks
        )
        if alike or not self.round or self.trained_with is not None:
            return torch.zeros(len(clients), dtype=torch.bool)
        if not self.stored_leaves() and any(block.share.epsilon is not None for block in self.bound.blocks):
            return torch.ones(len(clients), dtype=torch.bool)  # it predicts with its best model, not with the one told
        return self.last[clients] == 0

    def serve(self, clients: list[int]) -> None:
        """Onboard those of some clients that have not taken part yet, all at once.

        Each client is onboarded only once for a state of the run, however often it is asked for.
        """
        kept = self._now()
        fresh = torch.tensor(sorted(clients), dtype=torch.int64)
        fresh = fresh[self._anew(fresh) & (kept.places[0, fresh] < 0)]
        if len(fresh):
            kept.places[0, fresh] = len(kept.guests)
            kept.places[1, fresh] = torch.arange(len(fresh))
            kept.guests.append(onboard(self, self.federation.take(fresh.tolist())))

    def _now(self) -> _Kept:
        """What is kept for the state in which the run is."""
        if self._kept is None or self._kept.server is not self.server or self._kept.round != self.round:
            self._kept = _Kept(self.server, self.round, torch.full((2, len(self.federation)), -1))
        return self._kept

    def _newcomers(self, clients: list[int]) -> Stack:
        """What clients that have not taken part yet predict with."""
        self.serve(clients)
        kept = self._now()
        guest, place = kept.places[:, clients]
        found, order = [], []
        for number in guest.unique().tolist():
            own = (guest == number).nonzero().flatten()
            found.append(kept.guests[number].deployed(place[own].tolist()))
            order.append(own)
        back = torch.cat(order).argsort().to(self.device)
        return {
            slot: {path: torch.cat([stack[slot][path] for stack in found])[back] for path in leaves}
            for slot, leaves in found[0].items()
        }


READY = 2**27
"""Largest size, in bytes, of the predictors that are kept for a state of a run."""


@brief
@dataclass
class _Kept:
    """What clients predict with in one state of a run, as far as it had to be trained.

    Attributes:
        server: what the server kept in that state.
        round: number of rounds finished.
        places: ``(2, clients)`` the number of the guest run that holds each client, -1 for none yet, and the client's
            position in it.
        guests: runs of newcomers.
        stacks: leaves of the predictors of clients that train before they predict, ``(clients, ...)``, by the positions
            of the clients.
    """

    server: Mapping[str, BlockState]
    round: int
    places: Tensor
    guests: list[Run] = field(default_factory=list)
    stacks: dict[tuple[int, ...], Stack] = field(default_factory=dict)


def nbytes(stack: Stack) -> int:
    """Size of the leaves of some clients, in bytes."""
    return sum(leaf.nbytes for leaves in stack.values() for leaf in leaves.values())


def executor_of(execution: Execution, machine: Machine) -> Executor | None:
    """The processes that do the visits of a run; ``None`` if this process does."""
    if execution.ray is not None:
        return Rays(execution, machine.sent)
    return Processes(execution.side) if execution.side > 1 else None


def check_examples(federation: Federation) -> None:
    """Refuse clients that cannot train."""
    empty = (federation.splits["train"].sizes == 0).nonzero().flatten()
    if len(empty):
        client = federation.clients[int(empty[0])]
        raise PluresError(f"client {client!r} has no training example: give it data or leave it out")
