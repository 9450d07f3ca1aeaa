"""Chance levels: shares of variance between clients, permutation and sign-flip tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PERMUTATIONS = 199
"""Random permutations of a test; its smallest p-value is 1 / 200."""


@dataclass(frozen=True)
class Between:
    """How much of the variance lies between clients.

    Attributes:
        share: share of the variance within strata, corrected for chance; in [0, 1].
        raw: the same, uncorrected.
        chance: mean of ``raw`` over rearrangements of the rows among the clients.
        p: share of rearrangements whose ``raw`` is at least as large (the observed one counts).
        clients: ``(clients,)`` each client's squared distance from what its strata predict, corrected for chance; may
            be below 0 by chance.
        means: ``(clients, d)`` each client's mean deviation.
    """

    share: float
    raw: float
    chance: float
    p: float
    clients: Floats
    means: Floats


def between(
    values: Floats,
    owner: Ints,
    clients: int,
    rng: np.random.Generator,
    strata: Ints | None = None,
    permutations: int = PERMUTATIONS,
) -> Between:
    """Share of the variance that lies between clients, compared with rows dealt to them at random within strata.

    With deviations ``e_n`` of the values from the mean of their stratum and ``S_i`` their sum over client i, the raw
    share is ``sum_i |S_i|^2 / n_i  /  sum_n |e_n|^2``: the statistic of a permutational analysis of variance (Anderson
    2001), which a difference in the strata's frequencies alone does not affect.

    Args:
        values: ``(n, d)``.
        owner: ``(n,)`` client of each row.
        clients: their number.
        rng: source of the permutations.
        strata: ``(n,)``, such as labels; one stratum if not given.
        permutations: how many rearrangements.
    """
    group = np.zeros(len(owner), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    group = group.reshape(-1).astype(np.int64)
    deviations = values - means(values, group, int(group.max()) + 1)[group]
    count = np.bincount(owner, minlength=clients).astype(np.float64)
    total = float((deviations**2).sum())

    def spread(of: Floats) -> Floats:
        return np.asarray((sums(of, owner, clients) ** 2).sum(1) / np.maximum(count, 1), dtype=np.float64)

    observed = spread(deviations)
    if total <= 0:
        return Between(0.0, 0.0, 0.0, 1.0, np.zeros(clients), np.zeros((clients, values.shape[1])))
    by_group = np.argsort(group, kind="stable")
    drawn = np.empty((permutations, clients))
    for turn in range(permutations):
        shuffled = np.lexsort((rng.random(len(group)), group))
        rearranged = np.empty_like(deviations)
        rearranged[by_group] = deviations[shuffled]
        drawn[turn] = spread(rearranged)
    raw, chance = float(observed.sum() / total), float(drawn.sum(1).mean() / total)
    extreme = int((drawn.sum(1) >= observed.sum() * (1 - 1e-12)).sum())
    return Between(
        share=float(np.clip((raw - chance) / max(1 - chance, 1e-12), 0, 1)),
        raw=raw,
        chance=chance,
        p=(1 + extreme) / (1 + permutations),
        clients=(observed - drawn.mean(0)) / np.maximum(count, 1),
        means=sums(deviations, owner, clients) / np.maximum(count, 1)[:, None],
    )


def sums(values: Floats, group: Ints, groups: int) -> Floats:
    """Sum of the rows ``(n, d)`` of each group, ``(groups, d)``."""
    order = np.argsort(group, kind="stable")
    found, starts = np.unique(group[order], return_index=True)
    total = np.zeros((groups, values.shape[1]))
    if len(order):
        total[found] = np.add.reduceat(values[order], starts, axis=0)
    return total


def means(values: Floats, group: Ints, groups: int) -> Floats:
    """Mean of the rows of each group; zeros for an empty one."""
    count = np.bincount(group, minlength=groups)
    return np.asarray(sums(values, group, groups) / np.maximum(count, 1)[:, None], dtype=np.float64)


def positive(gains: Floats, rng: np.random.Generator, draws: int = 999) -> float:
    """One-sided p-value of the hypothesis that gains are symmetric about zero or below, by random signs (Fisher 1935).

    Args:
        gains: ``(n,)`` independent.
        rng: source of the signs.
        draws: number of draws, in addition to the observed one.
    """
    known = gains[np.isfinite(gains)]
    observed = float(known.sum())
    if not len(known) or observed <= 0:
        return 1.0
    extreme = sum(float((known * (1 - 2 * rng.integers(0, 2, len(known)))).sum()) >= observed for _ in range(draws))
    return (1 + extreme) / (1 + draws)
