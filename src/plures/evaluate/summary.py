"""Summary statistics over clients: not only the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plures.evaluate.scores import Floats
from plures.run.randomness import name_key

STUDENT_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t distribution with 1 to 30 degrees of freedom."""

RESAMPLES = 2_000
"""How many times clients are drawn for a bootstrap interval."""
BLOCK = 1_000_000
"""Most values drawn at once."""


@dataclass(frozen=True)
class Summary:
    """A metric over clients.

    Attributes:
        mean: mean over clients, each counting the same (macro mean).
        weighted: mean over clients by number of examples.
        std: population standard deviation over clients.
        worst: value of the worst client.
        bottom: mean of the worst tenth of the clients (at least one).
        p10: 10 % quantile counted from the worst value, linearly interpolated.
        jain: Jain's fairness index ``(sum x)^2 / (n sum x^2)``.
        known: number of clients that have a value.
    """

    mean: float
    weighted: float
    std: float
    worst: float
    bottom: float
    p10: float
    jain: float
    known: int


def summarize(values: Floats, sizes: Sequence[int] | Floats, *, higher: bool) -> Summary:
    """Summarize one metric over clients.

    Clients without a value (NaN), because they have no examples or the metric is undefined for them, are left out;
    ``known`` counts the others. If a client's value is infinite because its model diverged, the means are infinite,
    too, and spreads are NaN.

    Args:
        values: ``(clients,)`` values of the metric.
        sizes: ``(clients,)`` numbers of examples.
        higher: whether more is better.

    Examples:
        >>> from plures.evaluate import summarize
        >>> found = summarize(np.array([1.0, 0.5, 0.0]), [10, 20, 10], higher=True)
        >>> found.mean, found.weighted, found.worst
        (0.5, 0.5, 0.0)
    """
    known = ~np.isnan(values)
    x, n = values[known], np.asarray(sizes, dtype=np.float64)[known]
    if not len(x):
        return Summary(*(math.nan,) * 7, known=0)
    ordered = np.sort(x) if higher else np.sort(x)[::-1]
    with np.errstate(invalid="ignore", over="ignore"):
        return Summary(
            mean=float(x.mean()),
            weighted=float((x * n)[n > 0].sum() / n.sum()),
            std=float(x.std()),
            worst=float(ordered[0]),
            bottom=float(ordered[: max(1, len(x) // 10)].mean()),
            p10=float(np.quantile(x, 0.1 if higher else 0.9)),
            jain=float(x.sum() ** 2 / (len(x) * (x**2).sum())) if (x != 0).any() else 1.0,
            known=len(x),
        )


def harmed(values: Floats, reference: Floats, *, higher: bool) -> float:
    """Share of clients that are worse off than with the reference.

    A client whose model diverged has an infinite value: that is worse than any finite value, but not worse than a
    reference that diverged as well. Clients without a value (NaN) are left out.

    Examples:
        >>> from plures.evaluate import harmed
        >>> harmed(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.8, 0.8, 0.7, 0.7]), higher=True)
        0.25
    """
    known = ~(np.isnan(values) | np.isnan(reference))
    return float(worse(values, reference, higher=higher)[known].mean()) if known.any() else math.nan


def worse(values: Floats, reference: Floats, *, higher: bool) -> NDArray[np.bool_]:
    """Which clients are worse off than with the reference, ``(clients,)``; infinite values are compared as they are."""
    return values < reference if higher else values > reference


def differences(values: Floats, reference: Floats) -> Floats:
    """Differences ``(known,)`` of the clients that have both values, all of them finite.

    A difference between a finite and an infinite value becomes a number larger than all finite ones together; two
    infinite values of the same sign do not differ.
    """
    known = ~(np.isnan(values) | np.isnan(reference))
    x, y = values[known], reference[known]
    same, both = x == y, np.isfinite(x) & np.isfinite(y)
    difference = np.where(both, np.where(both, x, 0.0) - np.where(both, y, 0.0), 0.0)
    far = 2 * (1 + np.abs(difference).sum())
    return np.asarray(np.where(both | same, difference, np.where(x > y, far, -far)))


def mean_known(values: Floats) -> float:
    """Mean over the clients that have a value; NaN if none has one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval over seeds (Student's t); NaN width for one value.

    Examples:
        >>> from plures.evaluate import interval
        >>> mean, width = interval([0.5, 1.0, 1.5])
        >>> mean, round(width, 4)
        (1.0, 1.2422)
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float(x.mean()), math.nan
    quantile = STUDENT_975[len(x) - 2] if len(x) - 2 < len(STUDENT_975) else 1.96
    with np.errstate(invalid="ignore", over="ignore"):
        return float(x.mean()), float(quantile * x.std(ddof=1) / math.sqrt(len(x)))


def bootstrap(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % confidence interval of the mean over clients, by the percentile bootstrap (Efron 1979).

    Clients are drawn with replacement, as many as have a value; NaN with fewer than two. The same arguments give the
    same bounds. For few clients such intervals are too short: with five, they hold the mean in about 85 % of cases.

    Args:
        values: ``(clients,)`` values of the metric.
        resamples: how many times clients are drawn.
        seed: of the draws.

    Examples:
        >>> from plures.evaluate import bootstrap
        >>> bootstrap(np.array([0.0, 1.0]))
        (0.0, 1.0)
    """
    known = values[~np.isnan(values)]
    n = len(known)
    if n < 2:
        return math.nan, math.nan
    generator = np.random.default_rng((name_key("bootstrap"), seed))
    means = np.empty(resamples)
    at_once = max(1, BLOCK // n)
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, resamples, at_once):
            some = min(at_once, resamples - first)
            means[first : first + some] = known[generator.integers(0, n, (some, n))].mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_test(values: Floats, reference: Floats, draws: int = 10_000) -> float:
    """Two-sided p-value of no difference between two methods over the same clients.

    Sign-flip permutation test on the clients' differences (Fisher 1935): exact over all ``2^n`` sign patterns for up to
    13 clients, otherwise over ``draws`` random ones, always including the observed one. A client that diverged with
    just one of the two methods differs by more than all others together.

    Examples:
        >>> from plures.evaluate import paired_test
        >>> paired_test(np.array([3.0, 2.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0, 1.0]))
        0.125
    """
    difference = differences(values, reference)
    n = len(difference)
    if n == 0 or not difference.any():
        return 1.0
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn = np.random.default_rng(name_key("paired test")).integers(0, 2, (draws, n))
        signs = np.vstack([np.ones(n, dtype=np.int64), 1 - 2 * drawn])
    flipped = np.abs(signs @ difference)
    return float((flipped >= abs(difference.sum()) - 1e-12 * np.abs(difference).sum()).mean())
