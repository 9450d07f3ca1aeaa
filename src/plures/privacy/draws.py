"""How cohorts are drawn, as far as privacy accounting needs to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["poisson", "sample", "schedule"]


@dataclass(frozen=True)
class Draws:
    """How a rule draws cohorts.

    Attributes:
        kind: ``poisson``: each client by a coin of its own; ``sample``: so many clients without replacement;
            ``schedule``: cohorts that everybody may know, and that no data decide.
        clients: number of clients.
        expected: expected size of a cohort, the fixed number by which sums are divided.
        cohorts: the cohorts of the first rounds of this run: ``cohorts(rounds)``.
        rate: probability that a client takes part in a round; 1 for a schedule.
        at_most: largest cohort of truncated Poisson sampling.
        size: size of every cohort of a sample; 0 for others.
    """

    kind: Kind
    clients: int
    expected: float
    cohorts: Callable[[int], list[list[int]]]
    rate: float = 1.0
    at_most: int | None = None
    size: int = 0

    def patterns(self, rounds: int) -> set[tuple[int, ...]]:
        """In which of the first rounds clients take part: all patterns that occur."""
        found: dict[int, list[int]] = {}
        for number, cohort in enumerate(self.cohorts(rounds)):
            for client in cohort:
                found.setdefault(client, []).append(number)
        return {tuple(numbers) for numbers in found.values()}

    def __str__(self) -> str:
        if self.kind == "poisson":
            limit = "" if self.at_most is None else f", at most {self.at_most}"
            return f"each of {self.clients} clients with probability {self.rate:g}{limit}"
        if self.kind == "sample":
            return f"{self.size} of {self.clients} clients, without replacement"
        if self.expected == self.clients:
            return f"all {self.clients} clients in every round"
        return f"a schedule of {self.clients} clients that is known to all"
