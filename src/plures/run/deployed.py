"""The states and predictors of clients in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from plures.federation import Federation
from plures.federation.encode import Frame
from plures.method import Leaf, Setting
from plures.models import Leaves
from plures.run.coordinator import Coordinator
from plures.run.engine import Engine, Stack
from plures.run.local import Local
from plures.run.padding import Examples
from plures.run.predict import predicted
from plures.run.states import states, working
from plures.run.timed import timed

MODEL = "model"
"""The slot of a predictor that is one model."""


class Deployed(Coordinator[Local]):
    """A coordinator over clients in this process, with what each of them holds and predicts with."""

    @property
    def engine(self) -> Engine:
        """Does the local work."""
        return self.clients.engine

    def chunks(self, clients: list[int]) -> list[list[int]]:
        """Clients in chunks of similar size, by decreasing number of training examples."""
        return self.clients.chunks(clients)

    def states(self, clients: list[int]) -> Stack:
        """What some clients hold: what is shared from the server, what is personal from the store."""
        return states(self, clients)

    def on(self, federation: Federation, setting: Setting) -> Self:
        """A copy of this run in its current state, with other data: that of newcomers or of another task."""
        other, setting = copy.copy(self), timed(setting, self.participation, self.training)
        other.federation, other.setting = federation, setting
        other.held = self.bound.holding(setting)
        machine = self.engine.machine
        other.clients = Local(Engine(self.bound, federation, self.training, self.execution, self.seed, machine))
        return other

    # --- what clients predict with ------------------------------------------------------------------------------

    def predictors(self, clients: list[int]) -> Leaves:
        """Personal models of some clients, ``(clients, ...)`` each: the deployable readout after aggregation."""
        return self.deployed(clients)[MODEL]

    def deployed(self, clients: list[int]) -> Stack:
        """What some clients predict with: one slot with the personal model, or their whole state if it is composed."""
        order = self.federation.splits["train"].sizes[clients].argsort(descending=True, stable=True)
        ranked = [clients[i] for i in order.tolist()]
        stack = self.readout(self.states(ranked), ranked)
        if ranked == clients:
            return stack
        return {slot: {path: t[order.argsort()] for path, t in leaves.items()} for slot, leaves in stack.items()}

    def held_by(self, leaf: Leaf, value: Tensor, client: int) -> Tensor | None:
        """What a client holds of one of its leaves ``(...)``: where it has a part of the network, a smaller tensor.

        ``None`` where it does not have the layer.
        """
        path = leaf.path
        if self.held is None or path not in self.held.widths.leaves:
            return value
        return self.held.part(path, value, client) if value.shape == self.bound.initial["model"][path].shape else value

    def predict(
        self, client: str, inputs: Tensor | Mapping[str, Any] | Frame | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and decisions of one client's predictor.

        New rows are encoded, imputed and scaled in the way that was fitted to the run's data.

        Args:
            client: its name.
            inputs: raw examples ``(n, *features)``, or a table with the columns of the data, in any order
                (:meth:`~plures.federation.Federation.scaled`); default: the client's test examples.

        Returns:
            Outputs ``(n, outputs)``: log-probabilities of classes up to a constant, log-odds of labels, or the
            predicted numbers in the target's own units; classes ``(n,)`` int64 or labels ``(n, labels)`` of 0 and 1,
            ``None`` for regression.

        Raises:
            PluresError: for instance if there is no such client, or if its model diverged.

        Examples:
            >>> import numpy as np
            >>> import plures
            >>> age, ward = np.arange(60) % 50 + 20.0, np.array(["east", "west"]).repeat(30)
            >>> table = {"age": age, "ward": ward, "sick": age > 40}
            >>> data = plures.from_table(table, target="sick", client="ward")
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

    def readout(self, states: Stack, clients: list[int]) -> Stack:
        """The predictors that the method's ``predict`` part builds from the given states."""
        predict = self.bound.method.predictor
        if work := predict.preparation:
            received, states = states, working(states, self.bound.written_by(work))
            self.engine.visit(states, received, clients, self.round, work)
        if predict.composed:
            return states
        if isinstance(predict.model, str):
            return {MODEL: states[predict.model]}
        composed: Leaves = self.engine.mapped(lambda x: dict(predict.leaves(self.bound.state(x))))(states)
        return {MODEL: composed}
