"""Knowledge about the machine that the runs of a process share: measured times and compiled steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from plures.run.execution import Execution

Step = Callable[..., Any]
COMPILATION = 4.0
"""Seconds of a compilation that are expected before one was measured."""


@dataclass(frozen=True)
class Machine:
    """What several runs know of the machine. Whoever makes several runs gives all of them the same one.

    Attributes:
        timings: seconds of a round by execution, for each kind of work that was measured.
        paces: what the stacks among them took by capture and size, from which other sizes are estimated.
        steps: compiled steps by what they compute.
        compilations: seconds that each compilation of a step took.
        gains: what a compiled step took of the time of one that is not, by network.
        rounds: rounds that the steps of a run are used for altogether, where more runs of its kind follow; ``None`` for
            those of the run itself.

    Examples:
        >>> heart, machine = plures.load("heart"), plures.run.Machine()
        >>> options = {"execution": plures.Execution(backend="vmap"), "machine": machine}
        >>> model, method = plures.default_model(heart), plures.methods.fedavg()
        >>> runs = [plures.Run(heart, model, method, plures.Training(rounds=2), **options) for _ in range(2)]
        >>> len(machine.timings), runs[0].execution == runs[1].execution
        (1, True)
    """

    timings: dict[str, dict[Execution, float]] = field(default_factory=dict)
    paces: dict[str, dict[Any, dict[int, Any]]] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    compilations: list[float] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)
    rounds: int | None = None

    def expecting(self, rounds: int) -> Machine:
        """The same machine, for runs whose steps are used for a number of rounds altogether."""
        return replace(self, rounds=rounds)

    def portable(self) -> Machine:
        """What another process may know of the same machine: all but the compiled steps."""
        timings = {kind: dict(found) for kind, found in self.timings.items()}
        return Machine(timings, copy.deepcopy(self.paces), compilations=list(self.compilations), gains=dict(self.gains))

    def learn(self, other: Machine) -> None:
        """Take over what was found out elsewhere, of kinds of work that were not measured here."""
        for kind, found in other.timings.items():
            self.timings.setdefault(kind, dict(found))
        for kind, paces in other.paces.items():
            self.paces.setdefault(kind, copy.deepcopy(paces))
        for network, gain in other.gains.items():
            self.gains.setdefault(network, gain)
        if not self.compilations:
            self.compilations.extend(other.compilations)

    def compiled(self, key: str, make: Callable[[], Step]) -> Step:
        """A compiled step: the one that is there for what it computes, or a new one.

        Args:
            key: says all that the step depends on.
            make: makes it.
        """
        if key not in self.steps:
            self.steps[key] = make()
        return self.steps[key]

    @property
    def compilation(self) -> float:
        """Seconds to expect of a compilation."""
        return min(self.compilations[-3:], default=COMPILATION)
