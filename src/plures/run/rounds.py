"""The one round loop: broadcast, local work, upload, combine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.method import Block, Leaf, Mean, Method, State, encode
from plures.models import Leaves, ModelFactory, Network, build
from plures.run.choose import choose
from plures.run.cost import kept, traffic
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.participation import Full, Participation
from plures.run.randomness import fold, name_key
from plures.run.store import ClientStore
from plures.run.training import Training

Values = dict[Leaf, Tensor]


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    Attributes:
        round: number of rounds finished, from 1.
        cohort: names of the clients that took part.
        loss: mean training loss over the cohort, before the combination.
        bytes_up: bytes that clients sent to the server.
        bytes_down: bytes that clients received.
        seconds: wall time of the round.
    """

    round: int
    cohort: tuple[str, ...]
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float


class Run:
    """A federation, a model and a method in training.

    Args:
        federation: the clients and their data.
        model: a factory of modules (called with the seed set), or a module.
        method: what to run.
        training: local work and number of rounds.
        participation: who takes part in each round.
        seed: root of initial values, batches, cohorts and dropout.
        execution: how to use the machine; what is ``auto`` is measured here, before the first round.

    Attributes:
        round: number of rounds finished.
        execution: the settled execution.
        server: value of every block that the server keeps, ``(models, ...)`` for each leaf.
        membership: for every clustered block, the model that each client used last, ``(clients,)``.
        participated: ``(clients,)`` who took part in a round so far.
    """

    def __init__(
        self,
        federation: Federation,
        model: nn.Module | ModelFactory,
        method: Method,
        training: Training | None = None,
        *,
        participation: Participation | None = None,
        seed: int = 0,
        execution: Execution | None = None,
    ) -> None:
        execution = execution or Execution()
        self.training, self.participation, self.seed = training or Training(), participation or Full(), seed
        device, dtype = execution.torch_device, execution.dtype
        network = Network(build(model, seed).to(device, dtype))
        self.method, self.bound = method, method.bind(network)
        self.federation = federation.to(device, dtype)
        check_outputs(network, self.federation)
        self.execution = choose(self.bound, self.federation, self.training, execution, seed, len(self._cohort(0)))
        self.engine = Engine(self.bound, self.federation, self.training, self.execution, seed)
        self.round = 0
        self.participated = torch.zeros(len(federation), dtype=torch.bool)
        self.membership = {
            block.name: torch.zeros(len(federation), dtype=torch.int64)
            for block in self.bound.blocks
            if block.share.models > 1
        }
        self.server = {
            block.name: self._start(block, model, device, dtype) for block in self.bound.blocks if block.share.models
        }
        own = {(s, p): self.bound.initial[s][p] for s, p in self.kept()}
        self.store = ClientStore(own, len(federation), execution.clients_on_disk)

    def _start(self, block: Block, model: nn.Module | ModelFactory, device: torch.device, dtype: torch.dtype) -> Values:
        """Initial values of a block; models of a clustered block start differently, the first from the run's seed."""
        starts = [self.bound.initial]
        for number in range(1, block.share.models):
            other = Network(build(model, int(fold(self.seed, name_key("cluster"), number)) % 2**31).to(device, dtype))
            starts.append(self.method.bind(other).initial)
        return {(s, p): torch.stack([start[s][p] for start in starts]) for s, p in block.leaves}

    # --- what clients hold --------------------------------------------------------------------------------------

    def states(self, clients: list[int], membership: dict[str, Tensor] | None = None) -> Stack:
        """States of some clients as they stand: what is shared from the server, what is personal from the client."""
        stack: Stack = {slot: {} for slot in self.bound.initial}
        for block in self.bound.blocks:
            for slot, path in block.leaves:
                if (slot, path) in self.store:
                    rows = self.store.get((slot, path), clients)
                elif not block.share.models:
                    value = self.bound.initial[slot][path]
                    rows = value.expand(len(clients), *value.shape)
                elif block.share.models == 1:
                    value = self.server[block.name][slot, path]
                    rows = value.expand(len(clients), *value.shape[1:])
                else:
                    chosen = (membership or self.membership)[block.name]
                    rows = self.server[block.name][slot, path][chosen[clients].to(self.federation.inputs.device)]
                stack[slot][path] = rows
        return {slot: {path: stack[slot][path] for path in self.bound.initial[slot]} for slot in stack}

    def working(self, received: Stack, written: frozenset[Leaf]) -> Stack:
        """A working copy: leaves that local work writes are copied, others are the received ones."""
        return {
            slot: {path: t.clone() if (slot, path) in written else t for path, t in leaves.items()}
            for slot, leaves in received.items()
        }

    def predictors(self, clients: list[int]) -> Leaves:
        """Personal models of some clients, ``(clients, ...)`` each: the deployable readout after aggregation."""
        return self.readout(self.states(clients), clients)

    def readout(self, states: Stack, clients: list[int]) -> Leaves:
        """Personal models made of the given states by the method's ``predict`` part."""
        predict = self.bound.method.predictor
        if predict.adapt:
            received, states = states, self.working(states, self.bound.written_by(predict.adapt))
            self.engine.visit(states, received, clients, self.round, predict.adapt)
        if isinstance(predict.model, str):
            return states[predict.model]
        composed: Leaves = self.engine.mapped(lambda x: dict(predict.leaves(State(x))))(states)
        return composed

    def chunks(self, clients: list[int]) -> list[list[int]]:
        """Clients in chunks of similar size, by decreasing number of training examples."""
        sizes = self.federation.splits["train"].sizes.tolist()
        ordered = sorted(clients, key=lambda i: (-sizes[i], i))
        size = self.execution.chunk
        assert isinstance(size, int)
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    # --- the round ----------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[RoundRecord]:
        """Run all remaining rounds, one at a time. A round is either done as a whole or not at all."""
        while self.round < self.training.rounds:
            yield self.step()

    def step(self) -> RoundRecord:
        """One round."""
        begun = time.perf_counter()
        cohort = self._cohort(self.round)
        chunks = self.chunks(cohort)
        chosen = {block.name: self.nearest(block, chunks) for block in self.bound.blocks if block.share.models > 1}
        membership = {**self.membership, **chosen}
        means = {
            block.name: self._mean(block, cohort, membership)
            for block in self.bound.blocks
            if self.bound.travelling(block)
        }
        losses, personal = [], []
        for chunk in chunks:
            received = self.states(chunk, membership)
            x = self.working(received, self.bound.written)
            losses.append(self.engine.visit(x, received, chunk, self.round, self.method.schedule))
            for block in self.bound.blocks:
                if block.name in means:
                    weights, models = self._weights(block, chunk, membership)
                    means[block.name].add(self._upload(block, x, received, chunk), weights, models)
            personal.append((chunk, {leaf: x[leaf[0]][leaf[1]] for leaf in self.kept()}))
        updated = {name: self._combined(self.bound.block(name), mean, len(cohort)) for name, mean in means.items()}
        self.commit(personal, updated, membership)
        self.participated[cohort] = True
        self.round += 1
        up, down = traffic(self.bound)
        return RoundRecord(
            self.round,
            tuple(self.federation.clients[i] for i in cohort),
            float(torch.cat(losses).mean()),
            up * len(cohort),
            down * len(cohort),
            time.perf_counter() - begun,
        )

    def _cohort(self, round: int) -> list[int]:
        return self.participation.cohort(self.federation, self.seed, round)

    def kept(self) -> list[Leaf]:
        """Leaves that a client keeps between rounds: personal ones that local work changes."""
        return kept(self.bound)

    def _weights(self, block: Block, clients: list[int], membership: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        device = self.federation.inputs.device
        sizes = self.federation.splits["train"].sizes[clients].to(torch.float64)
        if self.bound.combine(block).weights == "uniform":
            sizes = torch.ones_like(sizes)
        models = (
            membership[block.name][clients]
            if block.name in membership
            else torch.zeros(len(clients), dtype=torch.int64)
        )
        return sizes.to(device), models.to(device)

    def _mean(self, block: Block, cohort: list[int], membership: dict[str, Tensor]) -> Mean:
        mean = Mean({f"{s}/{p}": self.server[block.name][s, p] for s, p in self.bound.travelling(block)})
        mean.expect(*self._weights(block, cohort, membership))
        return mean

    def _upload(self, block: Block, x: Stack, received: Stack, clients: list[int]) -> Leaves:
        leaves = self.bound.travelling(block)
        value, old = ({f"{s}/{p}": stack[s][p] for s, p in leaves} for stack in (x, received))
        if not self.method.wire:
            return value
        names = np.array([name_key(self.federation.clients[i]) for i in clients], dtype=np.uint64)
        keys = fold(self.seed, names, self.round, name_key(f"wire {block.name}")) >> np.uint64(1)
        return encode(
            self.method.wire, value, old, torch.from_numpy(keys.astype(np.int64)).to(self.federation.inputs.device)
        )

    def _combined(self, block: Block, mean: Mean, cohort: int) -> Values:
        leaves = self.bound.travelling(block)
        old = {f"{s}/{p}": self.server[block.name][s, p] for s, p in leaves}
        new = self.bound.combine(block).server.step(old, mean.result(), cohort / len(self.federation))
        return {(s, p): new[f"{s}/{p}"] for s, p in leaves}

    def commit(
        self, personal: list[tuple[list[int], Values]], updated: dict[str, Values], membership: dict[str, Tensor]
    ) -> None:
        for chunk, values in personal:
            for leaf, rows in values.items():
                self.store.put(leaf, chunk, rows)
            self.store.mark(chunk)
        for name, values in updated.items():
            self.server[name] = {**self.server[name], **values}
        self.membership = membership

    def nearest(self, block: Block, chunks: list[list[int]]) -> Tensor:
        """For every client of the cohort, the model with the lowest loss on its training data."""
        chosen = self.membership[block.name].clone()
        for chunk in chunks:
            losses = []
            for model in range(block.share.models):
                trial = {**self.membership, block.name: torch.full_like(chosen, model)}
                losses.append(self._loss(self.states(chunk, trial), chunk))
            chosen[chunk] = torch.stack(losses).argmin(0).cpu()
        return chosen

    def _loss(self, states: Stack, clients: list[int]) -> Tensor:
        """Training loss of some clients' models, without training, ``(clients,)``."""
        predict = self.bound.method.predictor
        measured = self.engine.measure(
            lambda x, received, batch: {"loss": batch.loss(predict.leaves(x))}, states, states, clients, "train"
        )
        return measured["loss"]


def check_outputs(network: Network, federation: Federation) -> None:
    """Refuse a model whose outputs do not fit the task, before anything is trained."""
    example = federation.inputs[:2]
    try:
        outputs, _ = network(network.leaves(), example, train=False)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise PluresError(f"the model cannot read examples of shape {federation.features}: {error}") from error
    expected = (len(example), federation.task.outputs)
    if tuple(outputs.shape) != expected:
        raise PluresError(
            f"the model gives outputs of shape {tuple(outputs.shape[1:])}, but {federation.task.kind} on "
            f"{federation.name!r} needs {expected[1:]}: set its number of outputs to {federation.task.outputs}"
        )
