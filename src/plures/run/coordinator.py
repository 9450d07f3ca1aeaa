"""The one round loop: broadcast, local work, upload, combine; wherever the clients are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.method import MEMBERSHIP, Block, Cohort, Kept, Look, Method, Probe, Setting, Share, View, named
from plures.models import Leaves, Marked, ModelFactory, Network
from plures.run.cost import traffic
from plures.run.engine import Stack
from plures.run.execution import Execution
from plures.run.participation import Joint, Participation
from plures.run.randomness import fold, name_key, unit
from plures.run.rehearse import failure
from plures.run.store import ClientStore
from plures.run.training import Training
from plures.run.uploads import Answer, Uploads, followed

Build = Callable[[int], Network]
"""``build(seed)``: the network that the method works on, with the initial values of that seed."""


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    Attributes:
        round: number of rounds finished, from 1.
        cohort: names of the clients that took part.
        loss: mean training loss over the cohort, before the combination: the task's loss (cross-entropy, or the squared
            error summed over outputs) without penalties and other terms of a method, over the steps of the schedule's
            last phase that trains something. It is the loss of the phase's slot (the first one that it trains), of the
            model that the phase made a forward pass with or said it was for (``keep=``): of APFL the global model, of
            Per-FedAvg the model before its adaptation. A phase without such a pass tells the loss of another slot that
            it trains or keeps (of pFedMe theta), and one without any makes a pass for it.
        objective: mean over the same steps of what the phase minimises. It is the same number where that is the task
            loss, and need not be a loss: Per-FedAvg's has the right gradient alone.
        bytes_up: bytes that clients sent to the server, gradients that it asked for included.
        bytes_down: bytes that clients received.
        seconds: wall time of the round.
        left_out: clients that were asked and whose work does not count, each with the reason.
    """

    round: int
    cohort: tuple[str, ...]
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    objective: float = float("nan")


@dataclass(frozen=True)
class Work:
    """The local work of a round.

    Attributes:
        clients: who did it, in increasing order.
        answers: what they send, a chunk of clients at a time.
        server: what the server keeps, with what the clients chose by themselves.
        left_out: who was asked and does not count, by name, and why.
    """

    clients: list[int]
    answers: Iterable[Answer]
    server: Mapping[str, Kept]
    left_out: Mapping[str, str] = field(default_factory=dict)


class Coordinator:
    """What the server of a run keeps, and the rounds that change it.

    Where the clients are is left to those that derive from it: in this process (:class:`~plures.run.rounds.Run`) or
    behind a network (:class:`~plures.run.remote.Remote`).

    Attributes:
        federation: the clients; their data too, where they are in this process.
        setting: facts about the clients.
        bound: the method, resolved against its network.
        training: local work and number of rounds.
        execution: how the clients use their machine.
        round: number of rounds finished.
        server: what the server keeps of every block.
        memory: what the server's step of every block remembers.
        moves: ``(moves, 4)`` who changed cluster: round, number of the block, client, new cluster.
        last: ``(clients,)`` number of rounds finished when each last took part, 0 for never.
        store: leaves of single clients that are kept here between rounds.
    """

    federation: Federation
    setting: Setting
    training: Training
    execution: Execution
    store: ClientStore

    def __init__(
        self,
        method: Method,
        setting: Setting,
        build: Build,
        participation: Participation,
        seed: int,
        *,
        given: bool,
        local: bool = False,
    ) -> None:
        """Start from round 0.

        Args:
            method: what to run.
            setting: facts about the clients.
            build: the network of each seed.
            participation: who takes part in each round.
            seed: root of all randomness.
            given: whether the model's initial values were given, so that there are no others.
            local: whether this is one client's own part of a run elsewhere.
        """
        self.seed, self.method = seed, method

        def another(number: int) -> Network:
            if given:
                raise PluresError(
                    "the method starts several models from different values, but the model given is a module, whose "
                    "values start them all: give a function that returns a new module, such as lambda: Net()"
                )
            return build(int(fold(seed, name_key("cluster"), number)) % 2**31)

        network = build(seed)
        check_outputs(network, self.federation)
        bound = method.bind(network, setting, lambda number: another(number).leaves())
        self.bound = bound.local() if local else bound
        rule = participation.of(travels=bound.travels) if isinstance(participation, Joint) else participation
        self.participation: Participation = rule
        self.round = 0
        self.last = torch.zeros(len(setting), dtype=torch.int64)
        self.moves = torch.zeros((0, 4), dtype=torch.int64)
        self._probed = 0

        def other(number: int) -> dict[str, Leaves]:
            return method.bind(another(number), setting, lambda n: another(number + n).leaves()).initial

        self.server = {block.name: self._start(block, setting, other) for block in self.served()}
        self.memory = {block.name: self._remember(block) for block in self.served()}

    def _start(self, block: Block, setting: Setting, other: Callable[[int], dict[str, Leaves]]) -> Kept:
        """What the server keeps of a block at the start."""

        buffers = frozenset(map(named, block.leaves)) - frozenset(map(named, self.bound.parameters(block)))

        def values(initial: dict[str, Leaves]) -> Leaves:
            return Marked({named(leaf): initial[leaf[0]][leaf[1]] for leaf in block.leaves}, buffers)

        kept = block.share.start(values(self.bound.initial), lambda number: values(other(number)), setting)
        return replace(kept, buffers=buffers)

    def _remember(self, block: Block) -> Leaves:
        """What the server's step of a block remembers at the start. It moves parameters; buffers are combined."""
        values = self.server[block.name].values
        moved = {k: values[k] for k in map(named, self.bound.parameters(block))}
        return self.bound.combine(block).server.start(moved) if moved else {}

    @property
    def device(self) -> torch.device:
        """Where the leaves are."""
        return self.federation.inputs.device

    @property
    def participated(self) -> Tensor:
        """``(clients,)`` who took part in a round so far."""
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
        """Who changed cluster: round (from 0), block, client, and the cluster it went to."""
        blocks, clients = self.bound.blocks, self.setting.clients
        return [(r, blocks[block].name, clients[client], to) for r, block, client, to in self.moves.tolist()]

    def served(self) -> list[Block]:
        """The blocks of which the server keeps something."""
        return [block for block in self.bound.blocks if block.share.served]

    # --- where the clients are --------------------------------------------------------------------------------

    def work(self, clients: list[int], server: Mapping[str, Kept]) -> Work:
        """Let clients work.

        Args:
            clients: the cohort, in increasing order.
            server: what the server sends out of.
        """
        raise NotImplementedError

    def insist(self, server: Mapping[str, Kept], memory: Mapping[str, Leaves]) -> None:
        """Refuse what a round has made of the uploads, before anything is changed. Here everything is taken."""

    def applied(self, work: Work) -> None:
        """Keep what the clients hold after a round that counts."""
        raise NotImplementedError

    def losses(self, clients: list[int], rows: int, share: Share) -> Tensor:
        """Training loss of some clients with each of the first ``rows`` models of a share, ``(rows, clients)``."""
        raise NotImplementedError

    def gradients(self, clients: list[int]) -> Tensor:
        """Gradient of some clients' training loss at the initial model, as one vector each, ``(clients, d)``."""
        raise NotImplementedError

    def choose(self, block: Block, cohort: Cohort) -> Kept:
        """Before a round, who receives what of a block."""
        gradients = self.gradients if block.share.probes else unannounced
        probe = Probe(lambda clients, rows: self.losses(clients, rows, block.share), gradients)
        return block.share.choose(self.server[block.name], cohort, probe)

    # --- the round --------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[RoundRecord]:
        """Run all remaining rounds, one at a time. A round is either done as a whole or not at all."""
        while self.round < self.training.rounds:
            yield self.step()

    def step(self) -> RoundRecord:
        """One round."""
        begun = time.perf_counter()
        wanted = self.cohort(self.round)
        cohort = Cohort(self.round, torch.tensor(wanted), self.setting, self.participated, self.draw)
        self._probed = 0
        chosen = {block.name: self.choose(block, cohort) for block in self.served()}
        memory = {name: followed(kept, self.memory[name]) for name, kept in chosen.items()}
        work = self.work(wanted, {name: replace(kept, copied=()) for name, kept in chosen.items()})
        server, clients = dict(work.server), work.clients
        cohort = replace(cohort, clients=torch.tensor(clients))
        sent = [block for block in self.served() if self.bound.travelling(block)]
        uploads = {b.name: Uploads(self.bound, b, server[b.name], clients, self.examples(clients)) for b in sent}
        losses = []
        for answer in work.answers:
            losses.append(torch.stack([answer.loss, answer.objective]))
            for upload in uploads.values():
                upload.add(answer)
        for name, upload in uploads.items():
            server[name], memory[name] = upload.combined(cohort, memory[name])
        self.insist(server, memory)
        self.applied(work)
        self._note(server)
        self.server, self.memory = server, memory
        self.round += 1
        self.last[clients] = self.round
        up, down = traffic(self.bound)
        loss, objective = map(self.mean, torch.cat(losses, 1))
        return RoundRecord(
            self.round,
            tuple(self.setting.clients[i] for i in clients),
            loss,
            up * len(clients) + self._probed,
            down * len(clients),
            time.perf_counter() - begun,
            work.left_out,
            objective,
        )

    def mean(self, losses: Tensor) -> float:
        """Mean of what the clients of a round tell of their training, ``(clients,)``."""
        return float(losses.mean())

    def cohort(self, round: int) -> list[int]:
        """Positions of the clients of a round, in increasing order."""
        chosen = self.participation.cohort(self.setting, self.seed, round)
        what = f"participation {type(self.participation).__name__}, round {round + 1}"
        if not chosen:
            raise PluresError(f"{what}: nobody takes part; choose at least one client for each round")
        for client in chosen:
            if not isinstance(client, Integral) or not 0 <= client < len(self.setting):
                raise PluresError(f"{what}: {client!r} is no client; give positions from 0 to {len(self.setting) - 1}")
        return sorted({int(client) for client in chosen})

    def examples(self, clients: list[int]) -> Tensor:
        """Training examples of some clients, ``(clients,)`` in double precision."""
        return self.setting.facts["examples"][clients].to(self.device, torch.float64)

    def draw(self, name: str, count: int) -> Tensor:
        """Uniform numbers of this round, ``(count,)``."""
        places = np.arange(count, dtype=np.uint64)
        return torch.from_numpy(unit(self.seed, self.round, name_key(f"server {name}"), places))

    def _note(self, server: Mapping[str, Kept]) -> None:
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
            who: ``(clients,)`` positions of those that look, -1 for newcomers.
            names: their names.
            states: what they hold, as far as the view reads it.
        """
        source = [leaf for b in self.bound.blocks if b.slot == share.of and b.share.served for leaf in b.leaves]
        kept = {leaf: t for kept in self.server.values() for leaf, t in kept.values.items()}
        rows = {p: kept[named((s, p))] for s, p in source}
        rows = {p: t.expand(len(self.setting), *t.shape[1:]) for p, t in rows.items()}
        rows = Marked(rows, self.bound.network.fixed)

        def draw(name: str) -> Tensor:
            keys = np.array([name_key(client) for client in names], dtype=np.uint64)
            others = np.arange(len(self.setting), dtype=np.uint64)
            return torch.from_numpy(unit(self.seed, keys[:, None], self.round, name_key(name), others[None]))

        return share.seen(Look(who, rows, states, self.setting, self.round, draw))


def unannounced(clients: list[int]) -> Tensor:
    """Refuse gradients to a share that did not say that it asks for them: sites would not give them either."""
    raise PluresError("a share asks for gradients at the initial model and does not say so: set probes = True in it")


def check_outputs(network: Network, federation: Federation) -> None:
    """Refuse a model whose outputs do not fit the task, before anything is trained."""
    example = federation.inputs[:2]
    if not len(example):
        example = federation.inputs.new_zeros(2, *federation.features)
    try:
        outputs, _ = network(network.leaves(), example, train=False)
    except PluresError:
        raise
    except Exception as error:
        raise PluresError(
            f"the model cannot read examples of shape {federation.features}: {failure(error)}; let its forward take "
            "one tensor (batch, *shape)"
        ) from error
    if not isinstance(outputs, Tensor):
        raise PluresError(
            f"the model gives {type(outputs).__name__}, not a tensor: wrap it in a module whose forward returns the "
            "class scores or numbers alone, such as its field logits"
        )
    expected = (len(example), federation.task.outputs)
    if tuple(outputs.shape) != expected:
        raise PluresError(
            f"the model gives outputs of shape {tuple(outputs.shape[1:])}, but {federation.task.kind} on "
            f"{federation.name!r} needs {expected[1:]}: set its number of outputs to {federation.task.outputs}"
        )


def builder(
    method: Method, model: nn.Module | ModelFactory, setting: Setting, federation: Federation, dtype: torch.dtype
) -> Build:
    """How the network of a run is built, on the device of a federation."""

    def build(seed: int) -> Network:
        return Network(method.prepare(model, setting, seed).to(federation.inputs.device, dtype))

    return build
