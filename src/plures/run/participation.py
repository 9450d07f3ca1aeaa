"""Which clients take part in a round: a pure function of seed and round, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plures.errors import PluresError
from plures.federation import Federation
from plures.run.randomness import fold, name_key


class Participation(Protocol):
    """A rule that names each round's cohort."""

    def cohort(self, federation: Federation, seed: int, round: int) -> list[int]:
        """Positions of the clients of a round, in increasing order."""


@dataclass(frozen=True)
class Full:
    """Every client takes part in every round."""

    def cohort(self, federation: Federation, seed: int, round: int) -> list[int]:
        return list(range(len(federation)))


@dataclass(frozen=True)
class Uniform:
    """A uniform sample without replacement.

    Attributes:
        fraction: share of the clients in a cohort, in (0, 1]; at least one client takes part.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise PluresError(f"participation fraction {self.fraction}: give a number in (0, 1]")

    def cohort(self, federation: Federation, seed: int, round: int) -> list[int]:
        size = max(1, round_half_up(self.fraction * len(federation)))
        return sorted(_generator(seed, round).permutation(len(federation))[:size].tolist())


@dataclass(frozen=True)
class BySize:
    """A sample without replacement in which a client's chance grows with its number of training examples.

    Clients are drawn one after the other with probability proportional to their examples; combine it with
    ``uniform`` weights for the scheme of q-FFL and Ditto (Li et al. 2020, 2021).

    Attributes:
        fraction: share of the clients in a cohort, in (0, 1]; at least one client takes part.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise PluresError(f"participation fraction {self.fraction}: give a number in (0, 1]")

    def cohort(self, federation: Federation, seed: int, round: int) -> list[int]:
        size = max(1, round_half_up(self.fraction * len(federation)))
        weights = federation.splits["train"].sizes.numpy().astype(float)
        generator = _generator(seed, round)
        return sorted(generator.choice(len(federation), size, replace=False, p=weights / weights.sum()).tolist())


@dataclass(frozen=True)
class Fixed:
    """Given cohorts, one after the other, from the start again when they are used up.

    Attributes:
        cohorts: client names of each round.
    """

    cohorts: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if not self.cohorts or not all(self.cohorts):
            raise PluresError("fixed participation: give at least one cohort, each with at least one client")

    def cohort(self, federation: Federation, seed: int, round: int) -> list[int]:
        return sorted({federation.index(name) for name in self.cohorts[round % len(self.cohorts)]})


def round_half_up(number: float) -> int:
    return int(number + 0.5)


def _generator(seed: int, round: int) -> np.random.Generator:
    return np.random.default_rng(int(fold(seed, name_key("cohort"), round)))
