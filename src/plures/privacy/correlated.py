"""Noise that is correlated over rounds, for cohorts that are no random sample (DP-FTRL by a matrix).

A model after ``t`` rounds is a prefix sum of changes. The matrix ``A`` of prefix sums is factorised into ``A = C C``
with its square root ``C``, a lower triangular Toeplitz matrix (Fichtenberger, Henzinger, Upadhyay 2023). Released is
``A (x + C^-1 z)``: the noise of a round takes back part of what earlier rounds added, so that sums of many rounds get
much less of it. The whole run is one Gaussian mechanism with the sensitivity of ``C``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def roots(count: int, power: float = 0.5) -> NDArray[np.float64]:
    """The first coefficients of ``(1 - x)^-power``: for 1/2 the first column of ``C``, for -1/2 that of its inverse.

    Examples:
        >>> roots(4).tolist()
        [1.0, 0.5, 0.375, 0.3125]
        >>> roots(4, -0.5).tolist()
        [1.0, -0.5, -0.125, -0.0625]
    """
    steps = np.arange(1, count)
    return np.concatenate([[1.0], np.cumprod((steps - 1 + power) / steps)])[:count]


def sensitivity(patterns: Iterable[tuple[int, ...]], rounds: int, first: NDArray[np.float64] | None = None) -> float:
    """The largest norm of what a client changes in ``C x``, if each of its changes has at most norm 1.

    Args:
        patterns: for every client, the rounds that it takes part in, from 0.
        rounds: number of rounds.
        first: the first column of ``C``, not negative; default: 1, 0, 0, ..., for independent noise.

    Examples:
        >>> round(sensitivity([(0,)], 4, roots(4)), 6)
        1.219951
        >>> sensitivity([(0, 2, 3, 5)], 6)
        2.0
    """
    column = np.eye(1, rounds)[0] if first is None else first
    longest = 0.0
    for pattern in patterns:
        takes_part = np.zeros(rounds)
        takes_part[list(pattern)] = 1.0
        longest = max(longest, float(np.linalg.norm(np.convolve(takes_part, column)[:rounds])))
    return longest
