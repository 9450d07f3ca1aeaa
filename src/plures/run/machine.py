"""What the runs of a process share about the machine: measured times and compiled steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from plures.run.capture import Recordings
from plures.run.execution import Execution

Step = Callable[..., Any]
COMPILATION = 4.0
"""Expected seconds of a compilation, until one has been measured."""
RECORDED = 1 << 28
"""Largest number of bytes that the memory of a thread's recorded steps may take, apart from that of the latest ones."""


@dataclass(frozen=True)
class Machine:
    """What runs know about the machine. Give all runs of a process the same one, so that nothing is measured twice.

    Attributes:
        timings: seconds of a round by execution, for each kind of work that was measured.
        paces: the paces of stacks among them, by capture and size, from which other sizes are estimated.
        steps: compiled steps by what they compute.
        recorded: steps recorded on a CPU, for each thread by what they compute and read; the latest ones are last.
        compilations: seconds that each compilation of a step took.
        gains: time of a compiled step as a fraction of an uncompiled one, by network.
        rounds: total number of rounds that will use a run's steps, if more runs of its kind follow; ``None`` for the
            run's own rounds.
        several: whether runs of the same kind follow that have other learning rates.

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
    recorded: dict[int, dict[str, Recordings]] = field(default_factory=dict)
    compilations: list[float] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)
    rounds: int | None = None
    several: bool = False
    sent: dict[str, Any] = field(default_factory=dict)

    def expecting(self, rounds: int) -> Machine:
        """The same machine, for runs whose steps are used for this many rounds in total."""
        return replace(self, rounds=rounds)

    def portable(self) -> Machine:
        """A copy for another process on the same machine: everything but the steps and what was sent."""
        timings = {kind: dict(found) for kind, found in self.timings.items()}
        return Machine(
            timings,
            copy.deepcopy(self.paces),
            compilations=list(self.compilations),
            gains=dict(self.gains),
            several=self.several,
        )

    def learn(self, other: Machine) -> None:
        """Add measurements made by another process, for kinds of work that were not measured here."""
        for kind, found in other.timings.items():
            self.timings.setdefault(kind, dict(found))
        for kind, paces in other.paces.items():
            self.paces.setdefault(kind, copy.deepcopy(paces))
        for network, gain in other.gains.items():
            self.gains.setdefault(network, gain)
        if not self.compilations:
            self.compilations.extend(other.compilations)

    def compiled(self, key: str, make: Callable[[], Step]) -> Step:
        """The compiled step for a key, made if there is none yet.

        Args:
            key: everything that the step depends on.
            make: makes the step.
        """
        if key not in self.steps:
            self.steps[key] = make()
        return self.steps[key]

    def recordings(self, key: str, make: Callable[[bool], Recordings], thread: int = 0) -> Recordings:
        """The recorded steps for a key. Those that read other examples are given up, and the oldest if all are large.

        Args:
            key: everything that the steps depend on.
            make: makes them, without any step yet; told whether other learning rates will follow.
            thread: number of the thread that they are for. Several threads may ask at once.
        """
        mine = self.recorded.get(thread, {})
        found = mine.get(key) or make(self.several)
        kept, size = {key: found}, 0
        for other, one in reversed(mine.items()):
            if other != key:
                size += one.nbytes
                if size <= RECORDED and one.reads(found.held):
                    kept[other] = one
        self.recorded[thread] = dict(reversed(kept.items()))
        return found

    @property
    def compilation(self) -> float:
        """Expected seconds of a compilation."""
        return min(self.compilations[-3:], default=COMPILATION)
