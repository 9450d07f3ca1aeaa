"""How one client's rows are divided, written for one client at a time: a reference for dividing all at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.federation import SplitRule


def divide(
    n: int,
    rule: SplitRule,
    rng: np.random.Generator,
    labels: NDArray[Any] | None,
    groups: NDArray[Any] | None,
    time: NDArray[Any] | None,
    keys: NDArray[Any] | None,
) -> NDArray[np.int64]:
    """The split of each of one client's ``n`` rows: 0 train, 1 validation, 2 test."""
    ranks = [column for column in (labels, keys) if column is not None]
    order = np.lexsort(ranks) if ranks else np.arange(n)  # the order of the rows' contents
    unit = np.empty(n, dtype=np.int64)  # rows that stay together, numbered in that order
    if groups is None:
        unit[order] = np.arange(n)
    else:
        _, first, inverse = np.unique(groups[order], return_index=True, return_inverse=True)
        unit[order] = np.argsort(np.argsort(first))[inverse]
    if rule.by == "time":
        assert time is not None
        return _by_time(unit, time, rule)[unit]
    stratum = np.zeros(unit.max() + 1, dtype=np.int64)
    if labels is not None:
        codes = np.unique(labels, return_inverse=True)[1]
        votes = np.zeros((len(stratum), codes.max() + 1), dtype=np.int64)
        np.add.at(votes, (unit, codes), 1)
        stratum = np.unique(votes.argmax(1), return_inverse=True)[1]
    return _by_class(stratum, rule, rng, cover=groups is not None)[unit]


def _by_class(stratum: NDArray[np.int64], rule: SplitRule, rng: np.random.Generator, cover: bool) -> NDArray[np.int64]:
    """Split of each unit, at random inside its stratum."""
    units = len(stratum)
    counts = np.bincount(stratum)
    least = [int(units >= 3 and share > 0) for share in (rule.validation, rule.test)]
    test_total = min(max(round(rule.test * units), least[1]), units - 1 - least[0])
    validation_total = min(max(round(rule.validation * units), least[0]), units - 1 - test_total)
    left = counts.copy()
    tie = 1e-6 * rng.random(len(counts))
    quotas = []
    for share, total, enough in ((rule.test, test_total, 2), (rule.validation, validation_total, 3)):
        quota = np.floor(share * counts + 1e-9).astype(np.int64)
        if cover and share > 0:
            quota = np.maximum(quota, counts >= enough)
        quota = np.minimum(quota, np.maximum(left - 1, 0))
        for _ in range(total - int(quota.sum())):
            due = share * counts - quota + tie
            rest = left - quota
            due[rest == 1] -= len(stratum)  # the last one of its class stays in train if possible
            due[rest == 0] = -np.inf
            quota[due.argmax()] += 1
        left -= quota
        quotas.append(quota)
    shuffled = rng.permutation(units)
    split = np.zeros(units, dtype=np.int64)
    for number, (test, validation) in enumerate(zip(*quotas, strict=True)):
        members = shuffled[stratum[shuffled] == number]
        split[members[:test]] = 2
        split[members[test : test + validation]] = 1
    return split


def _by_time(unit: NDArray[np.int64], time: NDArray[Any], rule: SplitRule) -> NDArray[np.int64]:
    """Split of each unit: the earliest train, then validation, then test."""
    sizes = np.bincount(unit)
    if len(sizes) < 3:
        return np.zeros(len(sizes), dtype=np.int64)
    by_unit = np.lexsort((time, unit))
    start = time[by_unit][np.cumsum(sizes) - sizes]  # the first time of each unit
    order = np.argsort(start, kind="stable")
    middle = sizes[order].cumsum() - sizes[order] / 2
    least_validation, least_test = int(rule.validation > 0), int(rule.test > 0)
    rows = len(unit)
    first_test = int(np.searchsorted(middle, rows * (1 - rule.test)))
    first_test = min(max(first_test, 1 + least_validation), len(sizes) - least_test)
    first_validation = int(np.searchsorted(middle, rows * (1 - rule.test - rule.validation)))
    first_validation = min(max(first_validation, 1), first_test - least_validation)
    split = np.full(len(sizes), 2, dtype=np.int64)
    split[order[:first_test]] = 1
    split[order[:first_validation]] = 0
    return split
