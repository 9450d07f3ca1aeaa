"""How far clusters of clients coincide with what is known about the clients and their examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from plures.evaluate.scores import Floats

PROXY = 0.5
"""From this adjusted mutual information, or share explained, on, a cluster is called a proxy for a column."""


def adjusted_mutual_information(one: Sequence[object], other: Sequence[object]) -> float:
    """How far two partitions of the same clients coincide: 1 if they are equal, about 0 if by chance.

    Mutual information minus its expectation over random partitions with groups of the same sizes, divided by the mean
    of the two entropies minus the same expectation (Vinh et al. 2010, JMLR). NaN if either has a single group or puts
    every client in a group of its own, for then nothing can coincide but by chance.

    Args:
        one: ``(clients,)`` group of each client.
        other: ``(clients,)`` group of each client in the other partition.

    Examples:
        >>> adjusted_mutual_information([0, 0, 1, 1, 1], ["a", "a", "b", "b", "b"])
        1.0
    """
    n = len(one)
    table = _counts(one, other)
    rows, columns = table.sum(1), table.sum(0)
    if any(len(sizes) in (1, n) for sizes in (rows, columns)):
        return math.nan
    shares = table / n
    inside = shares > 0
    both = float((shares[inside] * np.log(shares[inside] / np.outer(rows, columns)[inside] * n**2)).sum())
    expected = _expected(rows, columns, n)
    most = (_entropy(rows / n) + _entropy(columns / n)) / 2
    return 1.0 if (table > 0).sum() == len(rows) == len(columns) else (both - expected) / (most - expected)


def proxies(clusters: Sequence[int], columns: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Columns of metadata for which the clusters are a proxy, with their adjusted mutual information, highest first.

    Args:
        clusters: ``(clients,)`` cluster of each client.
        columns: column to one text per client; a column in which all clients are equal or all differ is left out.
    """
    found = {name: adjusted_mutual_information(clusters, values) for name, values in columns.items()}
    return dict(sorted(((k, v) for k, v in found.items() if v >= PROXY), key=lambda item: (-item[1], item[0])))


def explained(clusters: Sequence[int], counts: Sequence[Sequence[int]]) -> float:
    """How far clusters tell which mix of subgroups a client has: the share of the variance that they explain.

    Each client is the vector of its subgroups' shares; the share explained is that of the squared distances from the
    mean over clients, adjusted for what clusters of the same sizes explain by chance, ``(R2 - e) / (1 - e)`` with ``e =
    (clusters - 1) / (clients - 1)``: 1 if clients of a cluster have equal mixes, about 0 by chance. NaN if there is
    one cluster, or every client is one of its own; and if mixes differ no more than draws of as many examples from
    one common mix do.

    Args:
        clusters: ``(clients,)`` cluster of each client.
        counts: ``(clients, subgroups)`` examples; clients without any are left out.

    Examples:
        >>> explained([0, 0, 1, 1], [[90, 10], [90, 10], [10, 90], [10, 90]])
        1.0
    """
    table = np.asarray(counts, dtype=np.float64)
    some = table.sum(1) > 0
    table, labels = table[some], np.unique(np.asarray(clusters)[some], return_inverse=True)[1]
    n, many = len(table), len(np.unique(labels))
    if many in (0, 1, n):
        return math.nan
    shares = table / table.sum(1, keepdims=True)
    middle = shares.mean(0)
    total = float(((shares - middle) ** 2).sum())
    drawn = float((1 - (middle**2).sum()) * (1 / table.sum(1)).sum() * (n - 1) / n)
    if total <= drawn:
        return math.nan
    means = np.stack([shares[labels == label].mean(0) for label in range(many)])
    within = float(((shares - means[labels]) ** 2).sum())
    chance = (many - 1) / (n - 1)
    return (1 - within / total - chance) / (1 - chance)


def _counts(one: Sequence[object], other: Sequence[object]) -> Floats:
    """How many clients are in each pair of groups."""
    first, second = (np.unique(np.array(list(map(str, groups))), return_inverse=True)[1] for groups in (one, other))
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    return table


def _entropy(shares: Floats) -> float:
    return float(-(shares * np.log(shares)).sum())


def _expected(rows: Floats, columns: Floats, n: int) -> float:
    """Expectation of the mutual information: every overlap of two groups is hypergeometric."""
    factorial = np.array([math.lgamma(k + 1) for k in range(n + 1)])
    total = 0.0
    for a in rows.astype(int):
        for b in columns.astype(int):
            k = np.arange(max(1, a + b - n), min(a, b) + 1)
            chance = factorial[a] + factorial[b] + factorial[n - a] + factorial[n - b] - factorial[n]
            chance = chance - factorial[k] - factorial[a - k] - factorial[b - k] - factorial[n - a - b + k]
            total += float((k / n * np.log(n * k / (a * b)) * np.exp(chance)).sum())
    return total
