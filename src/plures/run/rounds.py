"""A run whose clients are in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation.build import Frame
from plures.method import (
    AGE,
    LATER,
    Batch,
    Block,
    Kept,
    Known,
    Leaf,
    Method,
    Setting,
    Share,
    State,
    View,
    encode,
    flatten,
    gradient,
    named,
)
from plures.models import Leaves, ModelFactory
from plures.run.choose import choose
from plures.run.coordinator import Coordinator, Work, builder
from plures.run.cost import kept
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.padding import Examples
from plures.run.participation import PARTICIPATIONS, Full, Participation
from plures.run.predict import predicted
from plures.run.randomness import fold, name_key
from plures.run.rehearse import rehearse
from plures.run.store import ClientStore
from plures.run.training import Training
from plures.run.uploads import Answer
from plures.signature import checked

Values = dict[Leaf, Tensor]
MODEL = "model"
"""The slot of a predictor that is one model."""


@checked
class Run(Coordinator):
    """A federation, a model and a method in training, with the clients in this process.

    Args:
        federation: the clients and their data.
        model: a factory of modules, called with the seed set; or a module, whose values start the run.
        method: what to run.
        training: local work and number of rounds.
        participation: who takes part in each round.
        seed: root of initial values, batches, cohorts and dropout.
        execution: how to use the machine; what is ``auto`` is measured here, before the first round.
        population: facts about all clients, where the federation holds only some of them, as it does at a site.

    Attributes:
        execution: the settled execution.
        engine: does the local work.
        store: the clients' personal leaves.
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
    ) -> None:
        execution = execution or Execution()
        self.training = training or Training()
        self.federation = federation.to(execution.torch_device, execution.dtype)
        check_examples(self.federation)
        self.setting = Setting.of(self.federation, population)
        known = population or self.setting
        build = builder(method, model, known, self.federation, execution.dtype)
        given = isinstance(model, nn.Module)
        local = population is not None
        super().__init__(method, known, build, participation or Full(), seed, given=given, local=local)
        if population is None:
            rehearse(self.bound, self.federation, self.training, execution, seed)
        cohort = self.cohort(0) if population is None else list(range(len(federation)))
        self.execution = choose(self.bound, self.federation, self.training, execution, seed, len(cohort))
        self.engine = Engine(self.bound, self.federation, self.training, self.execution, seed)
        own = {(s, p): self.bound.initial[s][p] for s, p in self.kept()}
        self.store = ClientStore(own, len(federation), execution.clients_on_disk)
        self.trained_with: Run | None = None
        """For newcomers, the run that they join."""
        self._served: tuple[Mapping[str, Kept], int, Run] | None = None
        self._worked: list[tuple[list[int], Values]] = []

    # --- what clients hold --------------------------------------------------------------------------------------

    def states(
        self, clients: list[int], server: Mapping[str, Kept] | None = None, rows: Mapping[str, Tensor] | None = None
    ) -> Stack:
        """States of some clients as they stand: what is shared from the server, what is personal from the client.

        Args:
            clients: positions.
            server: what the server keeps, if not what it keeps now.
            rows: for some blocks, the rows to receive instead of the clients' own.
        """
        server, stack = server or self.server, {slot: dict(ls) for slot, ls in self.bound.initial.items()}
        index = torch.tensor(clients)
        views = [block for block in self.bound.blocks if isinstance(block.share, View)]
        for block in self.bound.blocks:
            share = block.share
            values: Leaves = {}
            if share.served:
                kept = server[block.name]
                chosen = rows[block.name] if rows and block.name in rows else share.row(kept, index)
                values = share.read(kept, chosen)
            for slot, path in block.leaves:
                if share.served:
                    stack[slot][path] = values[named((slot, path))]
                elif isinstance(share, Known):
                    stack[slot][path] = self._fact(path)[clients]
                elif (slot, path) in self.store:
                    stack[slot][path] = self.store.get((slot, path), clients)
                else:
                    value = self.bound.initial[slot][path]
                    stack[slot][path] = value.expand(len(clients), *value.shape)
        for block in views:
            seen = self._seen(block, clients, stack)
            for slot, path in block.leaves:
                stack[slot][path] = seen[path]
        return stack

    def _fact(self, name: str) -> Tensor:
        """A fact of every client."""
        if name == LATER:
            later = torch.full((len(self.setting),), float(self.trained_with is not None))
            return later.to(self.federation.inputs.device, self.bound.network.dtype)
        if name != AGE:
            return self.setting.fact(name)
        missed = (self.round - self.last) * (self.last > 0)
        return missed.to(self.federation.inputs.device, self.bound.network.dtype)

    def _seen(self, block: Block, clients: list[int], stack: Stack) -> Leaves:
        """What some clients see of the models of others; newcomers see those of the clients that they join."""
        assert isinstance(block.share, View)
        run = self.trained_with or self
        who = torch.tensor(clients) if run is self else torch.full((len(clients),), -1)
        return run.seen(block.share, who, [self.setting.clients[i] for i in clients], stack)

    def working(self, received: Stack, written: frozenset[Leaf]) -> Stack:
        """A working copy: leaves that local work writes are copied, others are the received ones."""
        return {
            slot: {path: t.clone() if (slot, path) in written else t for path, t in leaves.items()}
            for slot, leaves in received.items()
        }

    def on(self, federation: Federation, setting: Setting) -> Run:
        """This run as it stands, with other data: of clients that come later, or of another task."""
        other = copy.copy(self)
        other.federation, other.setting = federation, setting
        other.engine = Engine(self.bound, federation, self.training, self.execution, self.seed)
        other._served = None
        return other

    # --- what clients predict with ------------------------------------------------------------------------------

    def predictors(self, clients: list[int]) -> Leaves:
        """Personal models of some clients, ``(clients, ...)`` each: the deployable readout after aggregation."""
        return self.deployed(clients)[MODEL]

    def deployed(self, clients: list[int]) -> Stack:
        """What some clients predict with: one slot with the personal model, or their whole state if it is composed.

        Clients that have not taken part yet have nothing of their own. From the first round on they are served as
        clients that come later (:func:`~plures.run.onboard.onboard`); what is stored for them stays as it is.
        """
        anew = self._anew(clients)
        if not bool(anew.any()):
            return self._deployed(clients)
        places = torch.searchsorted(self.never, torch.tensor(clients)[anew])
        new = self._newcomers().deployed(places.tolist())
        if bool(anew.all()):
            return new
        own = self._deployed([i for i, fresh in zip(clients, anew, strict=True) if not fresh])
        where = torch.cat([(~anew).nonzero(), anew.nonzero()]).squeeze(1).argsort().to(self.device)
        return {s: {p: torch.cat([t, new[s][p]])[where] for p, t in leaves.items()} for s, leaves in own.items()}

    def predict(
        self, client: str, inputs: Tensor | Mapping[str, Any] | Frame | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of one client's predictor, and the classes that it decides for.

        New rows are encoded, completed and scaled by what was fitted to the run's data.

        Args:
            client: its name.
            inputs: raw examples ``(n, *features)``, or a table with the columns of the data, in any order
                (:meth:`~plures.federation.Federation.scaled`); default: the client's test examples.

        Returns:
            Outputs ``(n, outputs)``, logarithms of probabilities up to a constant or the predicted numbers in the
            target's own units; classes ``(n,)`` int64, ``None`` for regression.

        Raises:
            PluresError: among others if there is no such client, or if its model diverged.

        Examples:
            >>> import numpy as np
            >>> import plures
            >>> age, ward = np.arange(60) % 50 + 20.0, np.array(["east", "west"]).repeat(30)
            >>> table = {"age": age, "ward": ward, "sick": age > 40}
            >>> data = plures.from_frame(table, target="sick", client="ward", standardize=True)
            >>> model = lambda: torch.nn.Linear(1, 2)
            >>> run = plures.Run(data, model, plures.methods.ditto(), plures.Training(rounds=20))
            >>> for _ in run.rounds():
            ...     pass
            >>> _, classes = run.predict("west", {"age": [20, 69]})
            >>> [data.task.classes[i] for i in classes]
            ['False', 'True']
        """
        place = self.federation.index(client)
        if inputs is None:
            rows = self.federation.inputs[self.federation.splits["test"][place]]
        else:
            rows = self.federation.scaled(inputs)
        own: Examples = {split: self.engine.whole([place], split) for split in self.bound.method.predictor.reads}
        return predicted(self.engine, self.federation.clients[place], self.deployed([place]), own, rows)

    def _anew(self, clients: list[int]) -> Tensor:
        """``(clients,)`` who of some clients is served as those that come later are."""
        alike = not self.kept() and all(isinstance(b.share, Known) or b.share.common for b in self.bound.blocks)
        if alike or not self.round or self.trained_with is not None:
            return torch.zeros(len(clients), dtype=torch.bool)
        return self.last[clients] == 0

    def _newcomers(self) -> Run:
        """The clients that have not taken part yet, as newcomers to the run as it stands; made once for a state."""
        from plures.run.onboard import onboard

        if self._served is None or self._served[0] is not self.server or self._served[1] != self.round:
            guest = onboard(self, self.federation.take(self.never.tolist()))
            self._served = self.server, self.round, guest
        return self._served[2]

    def _deployed(self, clients: list[int]) -> Stack:
        """The same as the clients stand, whether or not they took part."""
        order = self.federation.splits["train"].sizes[clients].argsort(descending=True, stable=True)
        ranked = [clients[i] for i in order.tolist()]
        stack = self.readout(self.states(ranked), ranked)
        if ranked == clients:
            return stack
        return {slot: {path: t[order.argsort()] for path, t in leaves.items()} for slot, leaves in stack.items()}

    def readout(self, states: Stack, clients: list[int]) -> Stack:
        """The predictors made of the given states by the method's ``predict`` part."""
        predict = self.bound.method.predictor
        if work := predict.preparation:
            received, states = states, self.working(states, self.bound.written_by(work))
            self.engine.visit(states, received, clients, self.round, work)
        if predict.composed:
            return states
        if isinstance(predict.model, str):
            return {MODEL: states[predict.model]}
        composed: Leaves = self.engine.mapped(lambda x: dict(predict.leaves(self.bound.state(x))))(states)
        return {MODEL: composed}

    def chunks(self, clients: list[int]) -> list[list[int]]:
        """Clients in chunks of similar size, by decreasing number of training examples."""
        sizes = self.federation.splits["train"].sizes.tolist()
        ordered = sorted(clients, key=lambda i: (-sizes[i], i))
        size = self.execution.chunk
        assert isinstance(size, int)
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    # --- the local work of a round ------------------------------------------------------------------------------

    def work(self, clients: list[int], server: Mapping[str, Kept]) -> Work:
        return Work(clients, self._answers(clients, server), server)

    def _answers(self, clients: list[int], server: Mapping[str, Kept]) -> Iterator[Answer]:
        """Visit the cohort, a chunk at a time."""
        self._worked = []
        for chunk in self.chunks(clients):
            received = self.states(chunk, server)
            x = self.working(received, self.bound.written)
            losses = self.engine.visit(x, received, chunk, self.round, self.method.schedule, scheduled=True)
            self._worked.append((chunk, {leaf: x[leaf[0]][leaf[1]] for leaf in self.kept()}))
            yield self._sent(x, received, chunk, losses)

    def _sent(self, x: Stack, received: Stack, clients: list[int], losses: Tensor) -> Answer:
        """What a chunk of clients sends."""
        values: dict[str, Leaves] = {}
        weights: dict[str, Tensor | Leaves] = {}
        for block in self.served():
            leaves = self.bound.travelling(block)
            if not leaves:
                continue
            value, old = ({named((s, p)): stack[s][p] for s, p in leaves} for stack in (x, received))
            values[block.name] = encode(self.method.wire, value, old, self._keys(block, clients))
            if callable(self.bound.combine(block).weights):
                weights[block.name] = self.engine.mapped(lambda x: self.bound.weighed(block, x))(x)  # noqa: B023
        return Answer(clients, values, weights, *losses)

    def _keys(self, block: Block, clients: list[int]) -> Tensor:
        names = np.array([name_key(self.federation.clients[i]) for i in clients], dtype=np.uint64)
        keys = fold(self.seed, names, self.round, name_key(f"wire {block.name}")) >> np.uint64(1)
        return torch.from_numpy(keys.astype(np.int64)).to(self.device)

    def applied(self, work: Work) -> None:
        self.commit(self._worked)
        self._worked = []

    def kept(self) -> list[Leaf]:
        """Leaves that a client keeps between rounds: personal ones that local work changes."""
        return kept(self.bound)

    def commit(self, personal: list[tuple[list[int], Values]]) -> None:
        """Give the clients of some chunks their personal leaves."""
        for chunk, values in personal:
            for leaf, rows in values.items():
                self.store.put(leaf, chunk, rows)
            self.store.mark(chunk)

    # --- what clients measure for the server --------------------------------------------------------------------

    def losses(self, clients: list[int], rows: int, share: Share) -> Tensor:
        """Training loss of some clients with each of the first ``rows`` models of a share, ``(rows, clients)``.

        Blocks that are shared in this very way change together; of others, the clients have what they have.
        """
        blocks = [block.name for block in self.served() if block.share == share]
        found = torch.zeros(rows, len(clients), dtype=self.bound.network.dtype, device=self.federation.inputs.device)
        place = {client: number for number, client in enumerate(clients)}
        for chunk in self.chunks(clients):
            for row in range(rows):
                chosen = {name: torch.full((len(chunk),), row) for name in blocks}
                states = self.states(chunk, rows=chosen)
                found[row, [place[i] for i in chunk]] = self._measured(self._loss, states, chunk)["loss"]
        return found

    def gradients(self, clients: list[int]) -> Tensor:
        """Gradient of some clients' training loss at the initial model, as one vector each, ``(clients, d)``.

        It is the gradient with respect to the leaves that travel: that of a personal leaf stays with the client.
        """
        place = {client: number for number, client in enumerate(clients)}
        found: dict[int, Tensor] = {}
        for chunk in self.chunks(clients):
            slopes = self.slopes(chunk)
            self._probed += sum(t.nbytes for t in slopes.values())
            found |= {place[i]: row for i, row in zip(chunk, flatten(slopes), strict=True)}
        return torch.stack([found[number] for number in range(len(clients))])

    def slopes(self, clients: list[int]) -> Leaves:
        """The same for a chunk, by leaf, ``(clients, ...)``."""
        initial = self.bound.initial.items()
        states = {s: {p: t.expand(len(clients), *t.shape) for p, t in leaves.items()} for s, leaves in initial}
        return self._measured(self._slope, states, clients)

    def _loss(self, x: State, received: State, batch: Batch) -> Leaves:
        predict = self.bound.method.predictor
        outputs = batch.outputs(predict.leaves(x)) if predict.reads else predict.predicted(x, batch)
        return {"loss": batch.problem.loss(outputs, batch.targets, batch.weight)}

    def _slope(self, x: State, received: State, batch: Batch) -> Leaves:
        slopes = gradient(self.bound.method.predictor.leaves(x), batch)
        return {path: slopes[path] for path in self.bound.probed()}

    def _measured(self, fn: Callable[[State, State, Batch], Leaves], states: Stack, clients: list[int]) -> Leaves:
        return self.engine.measure(fn, states, states, clients, "train")


def check_examples(federation: Federation) -> None:
    """Refuse clients that cannot train."""
    for client, size in zip(federation.clients, federation.splits["train"].sizes.tolist(), strict=True):
        if size == 0:
            raise PluresError(f"client {client!r} has no training example: give it data or leave it out")
