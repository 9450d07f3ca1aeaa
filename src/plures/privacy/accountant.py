"""Epsilon of rounds of noisy sums, by the accountants of ``dp-accounting``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch

from plures.errors import PluresError
from plures.extras import needed

Accountant = Literal["pld", "rdp"]
Neighbours = Literal["add_or_remove", "replace_one"]
ACCOUNTANTS: tuple[str, ...] = get_args(Accountant)
"""``pld``: the distribution of the privacy loss, tight; ``rdp``: Rényi divergences, fast."""
NEIGHBOURS: tuple[str, ...] = get_args(Neighbours)
"""``add_or_remove``: one client more or less; ``replace_one``: another client in the place of one."""
PRECISION = 1e-3
"""Relative precision of calibrated noise, which is always on the safe side."""
LEAST = 1e-3
"""Smallest noise that calibration tells from none."""
MOST = 1e6
"""Largest noise that calibration tries."""


def epsilon(
    noise: float,
    rounds: int,
    delta: float,
    *,
    rate: float = 1.0,
    at_most: int | None = None,
    fixed: tuple[int, int] | None = None,
    neighbours: Neighbours = "add_or_remove",
    accountant: Accountant = "pld",
) -> float:
    """Epsilon of so many rounds, in each of which the server releases a sum of bounded changes with Gaussian noise.

    Args:
        noise: standard deviation of the noise on the sum, in units of the bound on one client's change.
        rounds: number of rounds.
        delta: of (epsilon, delta).
        rate: probability that a client takes part, each by a coin of its own (Poisson sampling).
        at_most: largest cohort of truncated Poisson sampling; needs ``fixed[0]`` clients.
        fixed: ``(clients, cohort)`` for cohorts of a fixed size without replacement, or clients for ``at_most``.
        neighbours: what may differ.
        accountant: ``pld`` or ``rdp``.

    Raises:
        PluresError: if nobody knows a bound for this combination.

    Examples:
        >>> [round(epsilon(1.0, 1000, 1e-5, rate=0.01, accountant=by), 4) for by in ("pld", "rdp")]
        [1.8282, 2.1014]
    """
    if not 0 < delta < 1:
        raise PluresError(f"delta={delta}: give a number between 0 and 1, well below 1 / clients")
    if not rounds:
        return 0.0
    if noise <= 0:
        return math.inf
    insist(rate, at_most, neighbours, accountant)
    return _epsilon(noise, rounds, delta, rate, at_most, fixed, neighbours, accountant)


def insist(rate: float, at_most: int | None, neighbours: Neighbours, accountant: Accountant) -> None:
    """Refuse Poisson cohorts that an accountant has no bound for."""
    if at_most is not None and (accountant != "pld" or neighbours != "add_or_remove"):
        raise PluresError(
            "truncated Poisson cohorts (at_most) are known to the accountant 'pld' for neighbours 'add_or_remove' "
            "alone: choose these, or leave at_most out"
        )
    if rate < 1 and neighbours == "replace_one" and accountant == "rdp":
        raise PluresError(
            "Poisson cohorts are known to the accountant 'rdp' for neighbours 'add_or_remove' alone: choose these, or "
            "the accountant 'pld'"
        )


@cache
def _epsilon(
    noise: float,
    rounds: int,
    delta: float,
    rate: float,
    at_most: int | None,
    fixed: tuple[int, int] | None,
    neighbours: Neighbours,
    accountant: Accountant,
) -> float:
    dp = needed("dp_accounting", "differential privacy", "dp")
    if fixed is not None and at_most is None:
        if neighbours != "replace_one" or accountant != "rdp":
            raise PluresError(
                f"cohorts of a fixed size have no known bound for neighbours={neighbours!r} and "
                f"accountant={accountant!r}: say neighbours='replace_one' and accountant='rdp', which is several times "
                "as much as for Poisson cohorts of the same rate, or take these: participation='poisson'"
            )
        return composed(
            dp.SampledWithoutReplacementDpEvent(*fixed, dp.GaussianDpEvent(noise / 2)), rounds, delta, "rdp", neighbours
        )
    if at_most is not None:
        assert fixed is not None
        return composed(
            dp.TruncatedSubsampledGaussianDpEvent(fixed[0], rate, at_most, noise), rounds, delta, "pld", neighbours
        )
    if rate == 1.0:
        alone = noise / math.sqrt(rounds) / (2 if neighbours == "replace_one" else 1)
        return gaussian(alone, delta, accountant)
    return composed(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), rounds, delta, accountant, neighbours)


def gaussian(noise: float, delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon of one Gaussian mechanism; exact for ``pld``.

    Args:
        noise: standard deviation, in units of the largest change between neighbours.
        delta: of (epsilon, delta).
        accountant: ``pld`` or ``rdp``.

    Examples:
        >>> round(gaussian(3.730632, 1e-5), 3)
        1.0
    """
    if noise <= 0:
        return math.inf
    if accountant == "rdp":
        dp = needed("dp_accounting", "differential privacy", "dp")
        return composed(dp.GaussianDpEvent(noise), 1, delta, accountant, "add_or_remove")

    def beyond(epsilon: float) -> float:
        """Delta of an epsilon (Balle, Wang 2018, Theorem 8)."""
        points = torch.tensor(
            [1 / (2 * noise) - epsilon * noise, -1 / (2 * noise) - epsilon * noise], dtype=torch.float64
        )
        one, two = torch.special.log_ndtr(points).tolist()
        return math.exp(one) - math.exp(epsilon + two)

    low, high = 0.0, 1.0
    while beyond(high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > delta else (low, middle)
    return high


@cache
def composed(event: Any, times: int, delta: float, accountant: Accountant, neighbours: Neighbours) -> float:
    """Epsilon of an event of ``dp-accounting`` that happens so often."""
    dp = needed("dp_accounting", "differential privacy", "dp")
    relation = dp.NeighboringRelation
    between = relation.REPLACE_ONE if neighbours == "replace_one" else relation.ADD_OR_REMOVE_ONE
    module = needed(f"dp_accounting.{accountant}", "differential privacy", "dp")
    made = (module.PLDAccountant if accountant == "pld" else module.RdpAccountant)(neighboring_relation=between)
    return float(made.compose(event, times).get_epsilon(delta))


PLAIN = 50.0
"""Epsilon of an answer from which its distribution is not composed with others: it is added."""


@cache
def beside(
    noise: float | None, answers: tuple[tuple[float, int], ...], delta: float, accountant: Accountant = "pld"
) -> float:
    """Epsilon of a Gaussian mechanism and of answers each of which is private alone, with no delta.

    ``pld`` composes privacy losses; every answer's is at most that of a randomised response of two answers (Kairouz,
    Oh, Viswanath 2015). ``rdp`` adds epsilons.

    Args:
        noise: of the Gaussian mechanism, in units of the largest change between neighbours; ``None`` for none.
        answers: ``(epsilon, number of answers)`` of each kind.
        delta: of (epsilon, delta).
        accountant: ``pld`` or ``rdp``.

    Examples:
        >>> beside(None, ((1.0, 1),), 1e-5) <= 1.0, round(beside(None, ((0.1, 400),), 1e-5), 1)
        (True, 9.9)
    """
    simple = sum(each * times for each, times in answers)
    added = simple + (0.0 if noise is None else gaussian(noise, delta, accountant))
    if accountant == "rdp" or any(each > PLAIN for each, _ in answers) or not answers:
        return added
    losses = needed("dp_accounting.pld.privacy_loss_distribution", "differential privacy", "dp")
    common = needed("dp_accounting.pld.common", "differential privacy", "dp")
    found = None if noise is None else losses.from_gaussian_mechanism(noise)
    for each, times in answers:
        one = losses.from_privacy_parameters(common.DifferentialPrivacyParameters(each, 0.0)).self_compose(times)
        found = one if found is None else found.compose(one)
    assert found is not None
    return min(added, float(found.get_epsilon_for_delta(delta)))


def calibrated(wanted: float, spends: Callable[[float], float]) -> float:
    """The smallest noise that spends at most a given epsilon, to a relative precision of :data:`PRECISION`.

    Args:
        wanted: the epsilon.
        spends: the epsilon of a noise, which falls as noise grows.

    Raises:
        PluresError: if no noise is enough.

    Examples:
        >>> round(calibrated(1.0, lambda noise: gaussian(noise, 1e-5)), 2)
        3.73
    """
    if not 0 < wanted < math.inf:
        raise PluresError(f"epsilon={wanted}: give a positive number")
    high, spent = 1.0, spends(1.0)
    while spent > wanted:
        high, more = 2 * high, spent
        spent = spends(high)
        if high > MOST:
            raise PluresError(f"epsilon={wanted:g}: no noise up to {MOST:g} is enough; ask for more")
    low = high / 2
    while high > LEAST and (more := spends(low)) <= wanted:
        low, high, spent = low / 2, low, more
    while high - low > PRECISION * high and high > LEAST:
        steep = math.log(more / spent) / math.log(high / low) if more < math.inf and spent else 0.0
        guess = high * (spent / wanted) ** (1 / steep) if steep else (low + high) / 2
        near = PRECISION * high / 3
        middle = min(max(guess + near, low + near), high - near)
        found = spends(middle)
        if found > wanted:
            low, more = middle, found
            continue
        high, spent = middle, found
        if (under := high * (1 - PRECISION)) > low and (found := spends(under)) > wanted:
            low, more = under, found
    return high
