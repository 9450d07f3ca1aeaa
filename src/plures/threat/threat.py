"""Who attacks, from when, with what, and what the attackers know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.federation import Federation, Inputs, Mapped, Split
from plures.method import BlockState, Leaves, Sending, flatten, unflatten
from plures.method.channel import UPDATE
from plures.run.coordinator import Coordinator, Work
from plures.run.states import states
from plures.run.uploads import Answer, decoded
from plures.threat.attack import Attack, Round
from plures.threat.backdoor import success
from plures.threat.poison import Poison, Targeted, insist

if TYPE_CHECKING:
    from plures.run import Run

Knows = Literal["own", "colluders", "all"]
KEY = "threat"


@dataclass(frozen=True)
class Threat:
    """Hostile clients of a simulated run: ``Run(..., threat=Threat(0.2, SignFlip()))``.

    Attackers train on poisoned data, send forged uploads, or both. They keep the protocol: a forged upload has the
    right form and passes the wire's stages, whose bounds hold for it. Weights, running statistics and what else leaves
    a client are those of their training. They have no validation and test examples, so that every score is a mean over
    honest clients. Without any attacker the run is the honest one, bit for bit.

    Attributes:
        attackers: names of the hostile clients; or their number, or below 1 their share, drawn at random by ``seed``.
        attack: what they send; ``None`` for what they have trained.
        poison: what they train on; ``None`` for their own data.
        knows: what an attack on uploads is computed from: the attacker's own change (``own``), those of all attackers
            (``colluders``), or those of the round's honest clients (``all``).
        start: first round with forged uploads, from 1. Poisoned data are there from the first round.
        stop: last such round; ``None`` for the last of all.
        seed: of random attackers and random labels.
    """

    attackers: float | int | tuple[str, ...] = 0.2
    attack: Attack | None = None
    poison: Poison | None = None
    knows: Knows = "all"
    start: int = 1
    stop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.attackers, float | int) and not (0 <= self.attackers < 1 or self._counted):
            raise PluresError(f"attackers={self.attackers}: give names of clients, a number, or a share below 1")
        if self.attack is None and self.poison is None:
            raise PluresError("this threat does nothing: give an attack on uploads, poisoned data, or both")
        if self.attack is None and (self.start, self.stop) != (1, None):
            raise PluresError("poisoned data are there from the first round to the last: leave out start and stop")
        if self.start < 1 or (self.stop is not None and self.stop < self.start):
            raise PluresError(f"start={self.start}, stop={self.stop}: give rounds from 1, the first before the last")

    @property
    def _counted(self) -> bool:
        """Whether the number of attackers is given."""
        return isinstance(self.attackers, int) and not isinstance(self.attackers, bool) and self.attackers >= 1

    def hostile(self, clients: tuple[str, ...]) -> list[int]:
        """Positions of the hostile clients, in increasing order.

        Args:
            clients: names of all clients.

        Raises:
            PluresError: if a name is unknown, or nobody would be honest.
        """
        if isinstance(self.attackers, tuple):
            for name in self.attackers:
                if name not in clients:
                    raise PluresError(f"attackers: no client {name!r}; {suggestion(name, clients)}")
            chosen = [place for place, name in enumerate(clients) if name in self.attackers]
        else:
            order = torch.randperm(len(clients), generator=torch.Generator().manual_seed(self.seed))
            count = self.attackers if self._counted else round(self.attackers * len(clients))
            if self.attackers and not count:
                raise PluresError(
                    f"attackers={self.attackers} of {len(clients)} clients is nobody: give a larger share, a number, "
                    "or names"
                )
            chosen = sorted(order[: int(count)].tolist())
        if len(chosen) == len(clients):
            raise PluresError(f"all {len(clients)} clients are attackers: leave some honest ones to judge")
        return chosen

    def poisoned(self, federation: Federation) -> Federation:
        """The federation that trains: with the attackers' examples poisoned, and none of theirs to be judged by.

        Raises:
            PluresError: if the poison does not fit the task, or the data lie in a file.
        """
        hostile = self.hostile(federation.clients)
        if not hostile:
            return federation
        attacking, none = set(hostile), torch.zeros(0, dtype=torch.int64)
        splits = {
            name: split if name == "train" else Split.of([none if i in attacking else r for i, r in enumerate(split)])
            for name, split in federation.splits.items()
        }
        if self.poison is None:
            return replace(federation, splits=splits)
        insist(self.poison, federation)
        if isinstance(federation.inputs, Inputs | Mapped):
            raise PluresError("poisoned examples are copies of a single input in memory: load the data into memory")
        train, random = list(federation.splits["train"]), torch.Generator().manual_seed(self.seed)
        inputs, targets, size = [federation.inputs], [federation.targets], len(federation.targets)
        classes = federation.task.outputs
        poison = self.poison.fitted(federation)
        for place, client in enumerate(hostile):
            own = train[client]
            x, y = poison.of(place).examples(federation.inputs[own], federation.targets[own], classes, random)
            train[client] = torch.arange(size, size + len(own))
            inputs, targets, size = [*inputs, x], [*targets, y], size + len(own)
        copied = torch.cat([torch.arange(len(federation.targets)), *(federation.splits["train"][c] for c in hostile)])
        return replace(
            federation,
            inputs=torch.cat(inputs),
            targets=torch.cat(targets),
            weights=None if federation.weights is None else federation.weights[copied],
            splits={**splits, "train": Split.of(train)},
        )

    def forged(self, run: Coordinator[Any], work: Work) -> Work:
        """The work of a round, with the uploads that attackers send instead of their own.

        Args:
            run: the run, before the round.
            work: what the clients did.
        """
        number = run.round + 1
        cohort = set(work.clients)
        hostile = [i for i in self.hostile(run.setting.clients) if i in cohort]
        if self.attack is None or not hostile or number < self.start or (self.stop or number) < number:
            return work
        if {leaf for block in run.bound.blocks for leaf in run.bound.travelling(block)} <= set(run.bound.buffers):
            return work
        if run.bound.line.summed:
            raise PluresError("attacks on uploads are not simulated where the server reads only their sum")
        answers = list(work.answers)
        changed: dict[int, Tensor] = {}
        for answer, _ in answers:
            changed |= dict(zip(answer.clients, changes(run, answer, work.server), strict=True))
        attacking = set(hostile)
        honest = [row for client, row in changed.items() if client not in attacking]
        own = torch.stack([changed[client] for client in hostile])
        forged = self._sent(run, work.clients, hostile, own, torch.stack(honest) if honest else own)
        made = dict(zip(hostile, forged, strict=True))
        arriving = [(sent_instead(run, answer, work.server, made), stays) for answer, stays in answers]
        return replace(work, answers=arriving)

    def success(self, run: Run, *, shared: bool = False) -> dict[str, float]:
        """How often the backdoor opens the models of honest clients (:func:`~plures.threat.success`).

        Empty without a backdoor. The run may be one without attackers, to compare with.

        Args:
            run: the run.
            shared: of the models that clients receive, and not of those that they predict with.
        """
        if not isinstance(self.poison, Targeted):
            return {}
        hostile = set(self.hostile(run.federation.clients))
        honest = [name for place, name in enumerate(run.federation.clients) if place not in hostile]
        return success(run, self.poison.fitted(run.given), honest, shared=shared)

    def _sent(
        self, run: Coordinator[Any], clients: list[int], hostile: list[int], own: Tensor, honest: Tensor
    ) -> Tensor:
        """``(m, d)`` the changes that attackers send.

        Args:
            run: the run.
            clients: the cohort.
            hostile: the attackers among them.
            own: ``(m, d)`` the attackers' changes.
            honest: ``(h, d)`` the others' changes.
        """
        assert self.attack is not None
        weights = dict(zip(clients, run.examples(clients).tolist(), strict=True))
        uniform = all(rule.weights == "uniform" for rule in run.method.rules.values())
        weight = torch.tensor([1.0 if uniform else weights[i] for i in hostile], dtype=torch.float64)
        total = float(len(clients) if uniform else sum(weights.values()))
        key = run.key(KEY)
        if self.knows != "own":
            seen = honest if self.knows == "all" else own
            return self.attack.forge(Round(own, seen, len(clients), weight, total, key))
        alone = [Round(own[[i]], own[[i]], len(clients), weight[[i]], total, key + i) for i in range(len(own))]
        return torch.cat([self.attack.forge(known) for known in alone])


def received(run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Leaves:
    """What some clients received of the leaves that travel, by ``slot/path``, ``(clients, ...)``."""
    held = states(run, clients, server)
    going = [leaf for block in run.bound.blocks for leaf in run.bound.travelling(block)]
    return {str(leaf): held[leaf.slot][leaf.path] for leaf in going}


def parameters(run: Coordinator[Any], values: Leaves) -> Leaves:
    """Those of the travelling leaves that are not buffers."""
    buffers = set(map(str, run.bound.buffers))
    return {k: t for k, t in values.items() if k not in buffers}


def changes(run: Coordinator[Any], answer: Answer, server: Mapping[str, BlockState]) -> Tensor:
    """``(clients, d)`` the changes that an answer stands for."""
    old = received(run, answer.clients, server)
    new = decoded(run.bound, answer.sent, old)
    return flatten({k: new[k].double() - t.double() for k, t in parameters(run, old).items()})


def sent_instead(
    run: Coordinator[Any], answer: Answer, server: Mapping[str, BlockState], made: Mapping[int, Tensor]
) -> Answer:
    """An answer with the changes of attackers replaced, after the wire's stages.

    Args:
        run: the run.
        answer: what a chunk of clients sends.
        server: what the server keeps.
        made: by attacker, the change that it sends.
    """
    places = [place for place, client in enumerate(answer.clients) if client in made]
    if not places:
        return answer
    hostile = [answer.clients[place] for place in places]
    old = parameters(run, received(run, hostile, server))
    change = unflatten(torch.stack([made[client] for client in hostile]), {k: t.double() for k, t in old.items()})
    if run.bound.line.stages:
        keys = torch.tensor([run.key(f"{KEY} {client}") for client in hostile])
        memory = {k: t.expand(len(hostile), *t.shape[1:]) for k, t in run.bound.line.memory.items()}
        narrow = {k: d.to(old[k].dtype) for k, d in change.items()}
        payload, _ = run.bound.line.encode(narrow, memory, Sending(keys, old))
    else:
        payload = {k: (t.double() + change[k]).to(t.dtype) for k, t in old.items()}
    index = torch.tensor(places, device=run.device)
    update = {k: t.index_copy(0, index, payload[k]) for k, t in answer.sent[UPDATE].items()}
    return replace(answer, sent={**answer.sent, UPDATE: update})
