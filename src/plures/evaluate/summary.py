"""What the clients' numbers amount to: not only the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plures.evaluate.scores import Floats
from plures.run.randomness import name_key

STUDENT_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t distribution with 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Summary:
    """A metric over clients.

    Attributes:
        mean: mean over clients, each counting the same (macro mean).
        weighted: mean over clients by number of examples.
        std: population standard deviation over clients.
        worst: the client served worst.
        bottom: mean of the worst tenth of the clients (at least one).
        p10: 10 % quantile from the bad end, linearly interpolated.
        jain: Jain's fairness index ``(sum x)^2 / (n sum x^2)``.
    """

    mean: float
    weighted: float
    std: float
    worst: float
    bottom: float
    p10: float
    jain: float


def summarize(values: Floats, sizes: Sequence[int] | Floats, *, higher: bool) -> Summary:
    """Summarize one metric over clients; clients without examples (NaN) are left out.

    Args:
        values: ``(clients,)``.
        sizes: ``(clients,)`` number of examples.
        higher: whether more is better.
    """
    known = ~np.isnan(values)
    x, n = values[known], np.asarray(sizes, dtype=np.float64)[known]
    if not len(x):
        return Summary(*(math.nan,) * 7)
    ordered = np.sort(x) if higher else np.sort(x)[::-1]
    return Summary(
        mean=float(x.mean()),
        weighted=float((x * n).sum() / n.sum()),
        std=float(x.std()),
        worst=float(ordered[0]),
        bottom=float(ordered[: max(1, len(x) // 10)].mean()),
        p10=float(np.quantile(x, 0.1 if higher else 0.9)),
        jain=float(x.sum() ** 2 / (len(x) * (x**2).sum())) if (x != 0).any() else 1.0,
    )


def harmed(values: Floats, reference: Floats, *, higher: bool) -> float:
    """Share of clients that are worse off than with the reference."""
    known = ~(np.isnan(values) | np.isnan(reference))
    gain = (values - reference)[known] * (1 if higher else -1)
    return float((gain < 0).mean()) if known.any() else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval over seeds (Student's t); NaN width for one value."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float(x.mean()), math.nan
    quantile = STUDENT_975[len(x) - 2] if len(x) - 2 < len(STUDENT_975) else 1.96
    return float(x.mean()), float(quantile * x.std(ddof=1) / math.sqrt(len(x)))


def paired_test(values: Floats, reference: Floats, draws: int = 10_000) -> float:
    """Two-sided p-value of no difference between two methods over the same clients.

    Sign-flip permutation test on the clients' differences (Fisher 1935): exact over all ``2^n`` sign patterns for up to
    13 clients, otherwise over ``draws`` random ones, always including the observed one.
    """
    difference = (values - reference)[~(np.isnan(values) | np.isnan(reference))]
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
