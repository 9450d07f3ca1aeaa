"""The splits: their names, the rows of every client in them, and how rows are divided among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.federation.seeding import generator
from plures.names import coded

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@brief
@dataclass(frozen=True)
class Split:
    """Rows of every client in one split, as one flat index (compressed rows).

    Attributes:
        rows: ``(total,)`` int64 positions into the federation's flat tensors, client after client.
        offsets: ``(clients + 1,)`` int64; client ``i`` owns ``rows[offsets[i]:offsets[i + 1]]``.
    """

    rows: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Split:
        sizes = torch.tensor([0, *(len(r) for r in rows)], dtype=torch.int64)
        flat = torch.cat([r.to(torch.int64) for r in rows]) if rows else torch.empty(0, dtype=torch.int64)
        return cls(flat, sizes.cumsum(0))

    @property
    def sizes(self) -> Tensor:
        """``(clients,)`` int64 number of examples of each client."""
        return self.offsets.diff()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Tensor:
        """Rows of one client, ``(n_i,)`` int64."""
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def take(self, clients: Sequence[int]) -> Split:
        return Split.of([self[i] for i in clients])


@dataclass(frozen=True)
class SplitRule:
    """How a client's examples are divided.

    Attributes:
        validation: share of a client's examples for validation, in [0, 1).
        test: share for test, in [0, 1); train gets the rest, and always at least one example.
        by: ``random`` (stratified by label where there are labels), or ``time`` (the earliest examples train, the
            latest test).
    """

    validation: float = 0.15
    test: float = 0.25
    by: Literal["random", "time"] = "random"

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise PluresError(
                f"split rule: validation={self.validation} and test={self.test} must be shares of at least 0 "
                "whose sum is below 1"
            )
        if self.by not in ("random", "time"):
            raise PluresError(f"split rule: by={self.by!r} is unknown; use 'random' or 'time'")


def split_rows(
    client: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    time: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    rule: SplitRule | None = None,
    seed: int = 0,
) -> tuple[tuple[str, ...], dict[SplitName, Split]]:
    """Divide every client's rows into train, validation and test.

    A client's division depends only on ``seed``, its name and its own rows: other clients may come and go. With
    ``keys`` (a content hash of each row) it does not depend on the order in which rows are listed either.

    Without groups, every split of a client has its share of the client's rows (rounded; at least one row each from
    three rows on) and of each class (within one row); the last row of a class is taken out of train only when
    nothing else is left to fill a share. With groups, shares count groups, and every class with three groups or
    more is present in every split, with two in train and test.

    Args:
        client: ``(n,)`` client of each row; names are ``str`` of the values.
        labels: ``(n,)`` classes to stratify by; a group counts as its most frequent label.
        groups: ``(n,)`` rows of one client with the same value stay in one split.
        time: ``(n,)`` order of the rows, needed by ``SplitRule(by="time")``; a group has the time of its first row, and
            fewer than three rows (or groups) all train.
        keys: ``(n,)`` sortable content of each row; the row's position if not given.
        rule: the shares.
        seed: of the random division.

    Returns:
        The client names in natural order, and the splits with rows in ascending order inside each client.
    """
    rule = rule or SplitRule()
    if rule.by == "time" and time is None:
        raise PluresError("split by time: give the time column, or use SplitRule(by='random')")
    names, code = coded(np.asarray(client))
    columns = [None if c is None else np.asarray(c) for c in (labels, groups, time, keys)]
    for label, column in zip(("labels", "groups", "time", "keys"), columns, strict=True):
        if column is not None and len(column) != len(code):
            raise PluresError(f"{label}: {len(column)} values for {len(code)} rows; they must match")
    order = np.argsort(code, kind="stable")
    owned = np.split(order, np.bincount(code).cumsum()[:-1])
    parts: dict[SplitName, list[Tensor]] = {split: [] for split in SPLITS}
    for name, rows in zip(names, owned, strict=True):
        mine = [None if c is None else c[rows] for c in columns]
        which = _divide(len(rows), rule, generator(seed, "split", name), *mine)
        for number, split in enumerate(SPLITS):
            parts[split].append(torch.from_numpy(rows[which == number]))
    return names, {split: Split.of(rows) for split, rows in parts.items()}


def _divide(
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
            due[rest == 1] -= len(stratum)  # the last one of its class stays in train while it can
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
