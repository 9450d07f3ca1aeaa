"""Which clients take part in a round: a pure function of seed and round, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from plures.errors import PluresError
from plures.method import Setting
from plures.privacy.draws import Draws
from plures.run.randomness import fold, name_key, unit
from plures.signature import checked

PARTICIPATIONS = "a rule such as Full() or Uniform(0.1)"
"""The expected type, as messages describe it."""


@runtime_checkable
class Participation(Protocol):
    """A rule that names each round's cohort."""

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        """Positions of the clients of a round, in increasing order."""


@runtime_checkable
class Apart(Protocol):
    """A rule that has another one for methods that send nothing."""

    def alone(self) -> Participation:
        """The rule for clients that train by themselves."""


@checked
@dataclass(frozen=True)
class Full:
    """Every client takes part in every round.

    Examples:
        >>> plures.Full().cohort(plures.load("heart"), seed=0, round=1)
        [0, 1, 2, 3]
    """

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        return list(range(len(setting)))


@checked
@dataclass(frozen=True)
class Sample:
    """A sample of the clients without replacement.

    Attributes:
        fraction: share of the clients in a cohort, in (0, 1]; at least one client takes part.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise PluresError(f"participation fraction {self.fraction}: give a number in (0, 1]")

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        size = max(1, int(self.fraction * len(setting) + 0.5))
        generator = np.random.default_rng(int(fold(seed, name_key("cohort"), round)))
        return sorted(self.draw(setting, size, generator))

    def draw(self, setting: Setting, size: int, generator: np.random.Generator) -> list[int]:
        """``size`` different positions of clients."""
        raise NotImplementedError


class Uniform(Sample):
    """A sample in which every client has the same chance.

    Examples:
        >>> heart = plures.load("heart")
        >>> [len(plures.Uniform(0.5).cohort(heart, seed=0, round=r)) for r in (1, 2, 3)]
        [2, 2, 2]
    """

    def draw(self, setting: Setting, size: int, generator: np.random.Generator) -> list[int]:
        chosen: list[int] = generator.permutation(len(setting))[:size].tolist()
        return chosen


@checked
@dataclass(frozen=True)
class Poisson:
    """Every client takes part by a coin of its own, so a cohort's size differs from round to round and may be 0.

    Whether a client takes part tells nothing about the others, which is what privacy accounting needs to count on
    sampling (:mod:`plures.privacy`). A round in which nobody takes part is a round: it changes nothing by itself, and
    what the server adds to every sum, such as noise, it adds to an empty one.

    Attributes:
        rate: the probability that a client takes part in a round, in (0, 1].
        at_most: largest cohort: if more come, so many of them are drawn uniformly (truncated Poisson sampling);
            ``None`` for no limit.

    Examples:
        >>> heart = plures.load("heart")
        >>> [plures.Poisson(0.4).cohort(heart, seed=0, round=r) for r in range(4)]
        [[0, 3], [], [3], [0, 2]]
    """

    rate: float
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise PluresError(f"participation rate {self.rate}: give a number in (0, 1]")
        if self.at_most is not None and self.at_most < 1:
            raise PluresError(f"participation at_most={self.at_most}: give at least 1 client, or None")

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        keys = np.array([name_key(client) for client in setting.clients], dtype=np.uint64)
        came = np.flatnonzero(unit(seed, name_key("coin"), round, keys) < self.rate)
        if self.at_most is not None and len(came) > self.at_most:
            places = unit(seed, name_key("place"), round, keys[came])
            came = came[np.argsort(places, kind="stable")[: self.at_most]]
        chosen: list[int] = sorted(came.tolist())
        return chosen


class BySize(Sample):
    """A sample in which a client's chance grows with its number of training examples.

    Clients are drawn one after the other with probability proportional to their examples; combine it with
    ``uniform`` weights for the scheme of q-FFL and Ditto (Li et al. 2020, 2021).

    Examples:
        >>> from plures.method import Setting
        >>> setting = Setting.of(plures.load("heart"))
        >>> [len(plures.BySize(0.5).cohort(setting, seed=0, round=r)) for r in (1, 2, 3)]
        [2, 2, 2]
    """

    def draw(self, setting: Setting, size: int, generator: np.random.Generator) -> list[int]:
        weights = setting.facts["examples"].cpu().numpy().astype(float)
        chosen: list[int] = generator.choice(len(setting), size, replace=False, p=weights / weights.sum()).tolist()
        return chosen


@checked
@dataclass(frozen=True)
class DropOut:
    """Simulated drop-outs: each client of a round's cohort stays away with the same probability.

    At least one comes, unless the rule itself allows a round without clients (:class:`Poisson`).

    A client that stays away does nothing in the round: it keeps its state, and sends and counts for nothing. Who drops
    out depends on the seed, the round and the client's name alone, so it is the same for every method.

    Attributes:
        rule: who is asked.
        share: the probability that a client stays away, from 0 to below 1.

    Examples:
        >>> rule = DropOut(Full(), 0.5)
        >>> [rule.cohort(plures.load("heart"), seed=0, round=number) for number in range(3)]
        [[0, 2, 3], [2], [1, 2]]
    """

    rule: Participation
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise PluresError(f"drop-outs: {self.share}; give a share from 0 to below 1")

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        asked = self.rule.cohort(setting, seed, round)
        if not asked:
            return []
        luck = {
            client: np.random.default_rng(
                int(fold(seed, name_key("drop-out"), round, name_key(setting.clients[client])))
            ).random()
            for client in asked
        }
        came = [client for client in asked if luck[client] >= self.share]
        return came if came or may_be_empty(self.rule) else [max(asked, key=lambda client: luck[client])]


@checked
@dataclass(frozen=True)
class Joint:
    """A rule for methods in which clients learn jointly; if nothing travels, every client takes part in every round.

    A client that trains alone does not wait for a server to draw it. So in local-only training, the baseline of a
    comparison, every client makes as many visits as there are rounds, however few clients other methods draw.

    Attributes:
        rule: who takes part if something travels.
    """

    rule: Participation

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        return self.rule.cohort(setting, seed, round)

    def of(self, *, travels: bool) -> Participation:
        """The rule for a method.

        Args:
            travels: whether the method sends anything to the server.
        """
        if travels:
            return self.rule
        return self.rule.alone() if isinstance(self.rule, Apart) else Full()


def drawn(rule: Participation, setting: Setting, seed: int) -> Draws:
    """How a rule draws cohorts, for privacy accounting.

    Raises:
        PluresError: if nothing is known of the rule, or data decide who is drawn.
    """
    clients = len(setting)

    def cohorts(rounds: int) -> list[list[int]]:
        return [rule.cohort(setting, seed, round) for round in range(rounds)]

    if isinstance(rule, Joint):
        return drawn(rule.rule, setting, seed)
    if isinstance(rule, DropOut):
        inner, come = drawn(rule.rule, setting, seed), 1 - rule.share
        rate = inner.rate * come if inner.kind == "poisson" and inner.at_most is None else inner.rate
        return replace(inner, expected=inner.expected * come, rate=rate, cohorts=cohorts)
    if isinstance(rule, Full):
        return Draws("schedule", clients, float(clients), cohorts)
    if isinstance(rule, Poisson):
        expected = rule.rate * clients
        expected = expected if rule.at_most is None else min(expected, float(rule.at_most))
        return Draws("poisson", clients, expected, cohorts, rule.rate, rule.at_most)
    if isinstance(rule, Uniform):
        size = len(rule.cohort(setting, seed, 0))
        return Draws("sample", clients, float(size), cohorts, size=size)
    if isinstance(rule, Fixed):
        sizes = [len(set(cohort)) for cohort in rule.cohorts]
        return Draws("schedule", clients, sum(sizes) / len(sizes), cohorts)
    why = "draws by the clients' sizes" if isinstance(rule, BySize) else "does not say how it draws"
    raise PluresError(f"dp: participation {type(rule).__name__} {why}, so nobody can account for it: take Poisson")


def asked(rule: Participation, setting: Setting, seed: int, round: int) -> list[int]:
    """The cohort of a round, and those of it that only :class:`DropOut` keeps away."""
    if isinstance(rule, DropOut | Joint):
        return asked(rule.rule, setting, seed, round)
    return sorted(rule.cohort(setting, seed, round))


def may_be_empty(rule: Participation) -> bool:
    """Whether nobody at all may take part in a round."""
    return may_be_empty(rule.rule) if isinstance(rule, DropOut | Joint) else isinstance(rule, Poisson)


@dataclass(frozen=True)
class Fixed:
    """Given cohorts, one after the other, repeated from the start when they are used up.

    Attributes:
        cohorts: client names of each round.

    Examples:
        >>> rule = plures.Fixed([["va"], ["cleveland", "va"]])
        >>> [rule.cohort(plures.load("heart"), seed=0, round=r) for r in (0, 1, 2)]
        [[3], [0, 3], [3]]
    """

    cohorts: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if not self.cohorts or not all(self.cohorts):
            raise PluresError("fixed participation: give at least one cohort, each with at least one client")

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        return sorted({setting.index(name) for name in self.cohorts[round % len(self.cohorts)]})
