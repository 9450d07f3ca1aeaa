"""Noise that is correlated over rounds, for cohorts that are no random sample (DP-FTRL by a matrix).

A model after ``t`` rounds is a prefix sum of changes. The matrix ``A`` of prefix sums is factorised into ``A = C C``
with its square root ``C``, a lower triangular Toeplitz matrix (Fichtenberger, Henzinger, Upadhyay 2023). Released is
``A (x + C^-1 z)``: the noise of a round takes back part of what earlier rounds added, so that sums of many rounds get
much less of it. The whole run is one Gaussian mechanism with the sensitivity of ``C``.

The other matrix is a binary tree over the rounds (Kairouz et al. 2021, "Practical and private (deep) learning without
sampling or shuffling", Algorithm 1): every node has noise of its own, and a prefix sum has that of the few nodes that
its length in binary digits consists of. It has more noise than the square root at the same epsilon, but a round draws
as many numbers as the tree is high, and not as many as there were rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Matrix = Literal["toeplitz", "tree"]
MATRICES: tuple[str, ...] = get_args(Matrix)
"""``toeplitz``: the square root of prefix sums; ``tree``: a binary tree."""


def nodes(rounds: int) -> list[tuple[int, int]]:
    """The rounds ``[first, last]``, from 1, of all nodes whose noise is in any prefix sum.

    Examples:
        >>> nodes(4)
        [(1, 1), (1, 2), (3, 3), (1, 4)]
    """
    return [(last - size + 1, last) for last in range(1, rounds + 1) for size in [last & -last]]


def turnover(round: int) -> Iterator[tuple[int, int]]:
    """How the noise of a prefix sum changes in a round: ``(last round of a node, +1 or -1)``, rounds from 1.

    Examples:
        >>> list(turnover(4)), list(turnover(5))
        ([(4, 1), (3, -1), (2, -1)], [(5, 1)])
    """
    yield round, 1
    before, size = round - 1, round & -round
    while before > round - size:
        yield before, -1
        before -= before & -before


def tree_sensitivity(patterns: Iterable[tuple[int, ...]], rounds: int) -> float:
    """The largest norm of what a client changes in all nodes, if each of its changes has at most norm 1.

    Examples:
        >>> round(tree_sensitivity([(0,)], 1024) ** 2), round(tree_sensitivity([(0, 1, 2, 3)], 4) ** 2)
        (11, 22)
    """
    longest = 0.0
    first, last = (np.array(ends) for ends in zip(*nodes(rounds), strict=True))
    for pattern in patterns:
        so_far = np.zeros(rounds + 1)
        so_far[np.array(pattern, dtype=int) + 1] = 1.0
        so_far = so_far.cumsum()
        longest = max(longest, float(np.linalg.norm(so_far[last] - so_far[first - 1])))
    return longest


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
