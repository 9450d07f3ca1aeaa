"""What a round asks of its clients, where that depends on what has happened: on a clock, or on what they reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.method import Bound, Setting
from plures.run.participation import Participation

Numbers = NDArray[np.float64]
Memory = Mapping[str, Tensor]
"""What a paced rule remembers between rounds, on the CPU."""

OUTCOMES = ("counted", "late", "dropped", "surplus")
"""What may become of a client that was asked: its work counts; it was not done at the deadline; it failed or went away
before it was done; or others were done before it, and no more were needed."""


@dataclass(frozen=True)
class Turn:
    """What a round asks of whom.

    Attributes:
        clients: positions of the clients whose work counts, in increasing order.
        left_out: names of clients that were asked and do not count, each with the reason.
        efforts: the share of its steps that a client does; those that are not listed do all.
        versions: the number of rounds that were finished when a client began; those that are not listed begin now.
        scales: the factor by which a client's change counts; 1 for those that are not listed.
        needed: earlier versions that clients at work began from.
        hours: simulated time from the start to the end of this round; ``None`` without a clock.
        joules: energy of all clients from the start to the end of this round.
    """

    clients: list[int]
    left_out: Mapping[str, str] = field(default_factory=dict)
    efforts: Mapping[int, float] = field(default_factory=dict)
    versions: Mapping[int, int] = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)
    needed: frozenset[int] = frozenset()
    hours: float | None = None
    joules: float | None = None


@brief
@dataclass(frozen=True)
class Load:
    """The work of a visit, ``(clients,)`` each.

    Attributes:
        flops: floating-point operations.
        steps: gradient steps, in the phase with the most.
        up: bytes sent.
        down: bytes received.
        memory: bytes that training takes.
    """

    flops: Numbers
    steps: NDArray[np.int64]
    up: Numbers
    down: Numbers
    memory: Numbers


@brief
@dataclass(frozen=True)
class Occasion:
    """What a paced rule may know before a round.

    Attributes:
        setting: facts about the clients.
        seed: of the run.
        round: number of rounds finished.
        load: what a visit costs each client; computed when it is first asked for.
        losses: ``(clients) -> (clients,)`` training losses of some clients with what they hold now.
    """

    setting: Setting
    seed: int
    round: int
    load: Callable[[], Load]
    losses: Callable[[list[int]], Tensor]


@runtime_checkable
class Paced(Participation, Protocol):
    """A rule that names each round's cohort from what it remembers of earlier ones.

    ``cohort`` names the clients that would be asked without a clock, and without knowing anything about them.

    Attributes:
        utility: whether it wants to know how useful each client's examples were (:meth:`learned`).
        stale: whether clients may begin from earlier versions of the model.
    """

    @property
    def utility(self) -> bool: ...

    @property
    def stale(self) -> bool: ...

    def start(self, setting: Setting) -> Memory:
        """What it remembers before the first round."""

    def check(self, bound: Bound, known: Occasion) -> None:
        """Refuse a method, or clients, for which it cannot work, before anything is trained."""

    def turn(self, memory: Memory, known: Occasion) -> tuple[Turn, Memory]:
        """The next round."""

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        """What it remembers after a round that counted.

        Args:
            memory: what it remembered with the round.
            turn: the round.
            useful: for each of its clients, the root mean square of the losses of its training examples with the model
                that it received, ``(clients,)``; ``None`` unless :attr:`utility`.
        """
