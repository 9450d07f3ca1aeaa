"""Training with all clients' examples in one place: what a federation must do without, to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from plures.federation import Federation
from plures.method import BlockState
from plures.models import ModelFactory
from plures.run.choose import choose
from plures.run.coordinator import Coordinator, RoundRecord, Values, Work
from plures.run.engine import Engine
from plures.run.local import Local
from plures.run.run import Run
from plures.run.states import states, working
from plures.run.uploads import Answer

EVERYONE = "all clients"
"""Name of the one client that has all examples."""


class Together(Local):
    """Clients whose training examples are all in one place: a round is one visit there.

    The coordinator sees clients that all come to the same result, so that the model is that of the visit.

    Args:
        engine: knows the clients' own data, with which they predict.
        whole: does the work, on the federation of one client that has all examples.
    """

    def __init__(self, engine: Engine, whole: Engine) -> None:
        super().__init__(engine)
        self.whole = whole

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        return Work(clients, self._visits(run, clients, server), server)

    def _visits(
        self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]
    ) -> Iterator[tuple[Answer, Values]]:
        received = states(run, [0], server)
        x = working(received, run.bound.written)
        losses = self.whole.visit(x, received, [0], run.round, run.method.schedule, scheduled=True)
        answer = self._sent(run, x, received, [0], losses)
        for chunk in self.chunks(clients):
            sent = {
                channel: {name: t.expand(len(chunk), *t.shape[1:]) for name, t in given.items()}
                for channel, given in answer.sent.items()
            }
            yield Answer(chunk, sent), {}


class PooledRun(Run):
    """One model that is trained on all clients' examples together. It breaks privacy: all data must be in one place.

    A round is as much work on all training examples as a visit is on a client's, and each client predicts for its own
    examples. What travels are the training examples, once. All else is as in :class:`Run`, whose arguments these are;
    the method must share all of its model.
    """

    def __init__(self, federation: Federation, model: nn.Module | ModelFactory, *given: Any, **options: Any) -> None:
        super().__init__(federation, model, *given, **options)
        whole = self.federation.together(EVERYONE)
        wanted = replace(options.get("execution") or self.execution, processes=1, ray=None)
        machine = self.engine.machine
        settled = choose(self.bound, whole, self.training, wanted, self.seed, 1, machine)
        self.clients = Together(self.engine, Engine(self.bound, whole, self.training, settled, self.seed, machine))

    def step(self) -> RoundRecord:
        record, data = super().step(), self.federation
        row = data.inputs[:1].nbytes + data.targets[:1].nbytes
        sent = row * len(data.splits["train"].rows) if record.round == 1 else 0
        return replace(record, bytes_up=sent, bytes_down=0)
