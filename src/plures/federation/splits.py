"""The splits: their names, the rows of every client in them, and how rows are divided among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError, check_choice
from plures.federation.seeding import TOGETHER, Generators
from plures.names import coded

SplitName = Literal["train", "validation", "test"]
By = Literal["random", "time"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@brief
@by_content
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

    @classmethod
    def of_flat(cls, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Split:
        """A split from rows, client after client, and the number of rows of each client."""
        return cls(torch.from_numpy(rows), torch.from_numpy(np.r_[0, sizes.cumsum()]))

    @property
    def owners(self) -> Tensor:
        """``(total,)`` int64 the client of each row, in the order of ``rows``."""
        return torch.arange(len(self)).repeat_interleave(self.sizes).to(self.rows.device)

    @cached_property
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
        """The rows of some clients, in the order given."""
        chosen = torch.as_tensor(clients, dtype=torch.int64)
        sizes = self.sizes[chosen]
        ends = sizes.cumsum(0)
        places = torch.arange(int(sizes.sum())) + (self.offsets[:-1][chosen] - ends + sizes).repeat_interleave(sizes)
        return Split(self.rows[places.to(self.rows.device)], torch.cat([ends.new_zeros(1), ends]))


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
    by: By = "random"

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise PluresError(
                f"split rule: validation={self.validation} and test={self.test} must be shares of at least 0 "
                "whose sum is below 1"
            )
        check_choice("split rule: by", self.by, get_args(By))


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
    names, code = coded(np.asarray(client))
    return names, divided(names, code, labels, groups, time, keys, rule, seed)


def divided(
    names: Sequence[str],
    code: NDArray[np.int64],
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    time: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    rule: SplitRule | None = None,
    seed: int = 0,
) -> dict[SplitName, Split]:
    """`split_rows`, for rows whose client is given by its position ``code`` among the names.

    All clients are divided together, in flat arrays with one client's rows after the other's. Each client's random
    numbers are those that a generator of its own would draw.
    """
    rule = rule or SplitRule()
    if rule.by == "time" and time is None:
        raise PluresError("split by time: give the time column, or use SplitRule(by='random')")
    columns = [None if c is None else np.asarray(c) for c in (labels, groups, time, keys)]
    for label, column in zip(("labels", "groups", "time", "keys"), columns, strict=True):
        if column is not None and len(column) != len(code):
            raise PluresError(f"{label}: {len(column)} values for {len(code)} rows; they must match")
    strata, group, when, content = (None if c is None else _ranks(c) for c in columns)
    order = np.argsort(code, kind="stable")
    units = _units(order, code, strata, group, content)
    if rule.by == "time":
        assert when is not None
        which = _by_time(units, when[order], rule)[units.of]
    else:
        stratum = None if strata is None else _elected(units, strata[order])
        which = _by_class(units, stratum, rule, Generators((seed, "split"), names), cover=group is not None)[units.of]
    owner = code[order]
    return {
        split: Split.of_flat(order[which == number], np.bincount(owner[which == number], minlength=len(names)))
        for number, split in enumerate(SPLITS)
    }


def as_given(
    names: Sequence[str],
    code: NDArray[np.int64],
    which: NDArray[np.int64],
    labels: ArrayLike | None,
    groups: ArrayLike | None,
    time: ArrayLike | None,
    keys: ArrayLike | None,
    rule: SplitRule,
    seed: int,
) -> dict[SplitName, Split]:
    """Splits that the data come with: the position in ``SPLITS`` of each row.

    If no row at all is for validation, the rule's share of each client's train rows is, drawn by :func:`divided`.

    Raises:
        PluresError: if a client has no train rows, or rows of one group are in different splits.
    """
    sizes = np.bincount(code[which == 0], minlength=len(names))
    if not sizes.all():
        raise PluresError(f"client {names[int(sizes.argmin())]!r}: no row is for train; give it one, or leave it out")
    columns = [None if c is None else np.asarray(c) for c in (labels, groups, time, keys)]
    if columns[1] is not None:
        units = np.unique(np.stack([code, _ranks(columns[1])]), axis=1, return_inverse=True)[1].reshape(-1)
        pairs = np.unique(np.stack([units, which]), axis=1)[0]
        if len(torn := pairs[1:][pairs[1:] == pairs[:-1]]):
            row = int((units == torn[0]).argmax())
            raise PluresError(
                f"client {names[int(code[row])]!r}: rows of group {columns[1][row]} are in different splits; correct "
                "the column of splits, or leave the group out"
            )
    if rule.validation > 0 and not (which == 1).any():
        train = np.flatnonzero(which == 0)
        strata, group, when, content = (None if c is None else c[train] for c in columns)
        share = SplitRule(rule.validation, 0.0, rule.by)
        drawn = divided(names, code[train], strata, group, when, content, share, seed)["validation"].rows.numpy()
        which = which.copy()
        which[train[drawn]] = 1
    order = np.argsort(code, kind="stable")
    owner, which = code[order], which[order]
    return {
        split: Split.of_flat(order[which == number], np.bincount(owner[which == number], minlength=len(names)))
        for number, split in enumerate(SPLITS)
    }


@brief
@dataclass(frozen=True)
class _Units:
    """Units that stay in one split, a row or a group of rows: numbered client after client, in order of content.

    Attributes:
        of: ``(rows,)`` the unit of each row, rows client after client.
        counts: ``(clients,)`` units of each client.
    """

    of: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def client(self) -> NDArray[np.int64]:
        """``(units,)`` the client of each unit."""
        return np.arange(len(self.counts)).repeat(self.counts)

    @property
    def start(self) -> NDArray[np.int64]:
        """``(clients,)`` the first unit of each client."""
        return self.counts.cumsum() - self.counts


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers that sort in the same order as the values."""
    if values.dtype == np.dtype("S16"):  # a digest: two words sort faster than texts
        words = np.ascontiguousarray(values).view(">u8").astype("<u8").reshape(-1, 2)
        return words.view([("high", "<u8"), ("low", "<u8")]).reshape(-1)
    return values if values.dtype.kind in "iub" else np.unique(values, return_inverse=True)[1].reshape(-1)


def _sortable(column: NDArray[Any]) -> list[NDArray[Any]]:
    """A column as keys of ``lexsort``, the last one first."""
    return [column[name] for name in reversed(column.dtype.names)] if column.dtype.names else [column]


def _units(
    order: NDArray[np.int64],
    code: NDArray[np.int64],
    strata: NDArray[Any] | None,
    group: NDArray[Any] | None,
    content: NDArray[Any] | None,
) -> _Units:
    """The units of all clients; rows with equal contents keep their order."""
    owner, rows = code[order], np.arange(len(order))
    ranks = [key[order] for column in (strata, content) if column is not None for key in _sortable(column)]
    listed = np.lexsort([*ranks, owner]) if ranks else rows
    place = np.empty(len(order), dtype=np.int64)
    place[listed] = rows
    if group is None:
        return _Units(place, np.bincount(owner))
    mine = group[order][listed]
    codes = np.unique(mine, return_inverse=True)[1].reshape(-1)
    pairs = owner[listed] * (int(codes.max()) + 1) + codes
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return _Units(rank[inverse.reshape(-1)][place], np.bincount(owner[listed][np.sort(first)]))


def _elected(units: _Units, labels: NDArray[Any]) -> NDArray[Any]:
    """The most frequent label of each unit, the first of those that are equally frequent."""
    if len(labels) == int(units.counts.sum()):
        found = np.empty_like(labels)
        found[units.of] = labels
        return found
    order = np.lexsort((labels, units.of))
    unit, label = units.of[order], labels[order]
    first = np.flatnonzero(np.r_[True, (unit[1:] != unit[:-1]) | (label[1:] != label[:-1])])
    votes = np.diff(np.r_[first, len(order)])
    best = np.lexsort((label[first], -votes, unit[first]))
    chosen = best[np.r_[True, np.diff(unit[first][best]) > 0]]
    return np.asarray(label[first][chosen])


def _by_class(
    units: _Units, labels: NDArray[Any] | None, rule: SplitRule, generators: Generators, cover: bool
) -> NDArray[np.int64]:
    """Split of each unit, at random inside its stratum: the units of one client with one label."""
    client, total = units.client, int(units.counts.sum())
    order = np.arange(total) if labels is None else np.lexsort((labels, client))
    new = np.r_[True, np.diff(client[order]) > 0]
    if labels is not None:
        new |= np.r_[True, labels[order][1:] != labels[order][:-1]]
    stratum = np.empty(total, dtype=np.int64)
    stratum[order] = new.cumsum() - 1
    counts = np.bincount(stratum)
    strata = np.bincount(client[order][new])  # of each client
    ties, shuffled = generators.shuffled(strata, units.counts)
    test, validation = _quotas(units.counts, strata, counts, 1e-6 * ties, rule, cover)
    shuffled += units.start.repeat(units.counts)
    drawn = shuffled[np.argsort(stratum[shuffled], kind="stable")]  # stratum after stratum, in random order
    rank = np.arange(total) - (counts.cumsum() - counts).repeat(counts)
    split = np.zeros(total, dtype=np.int64)
    split[drawn[rank < (test + validation).repeat(counts)]] = 1
    split[drawn[rank < test.repeat(counts)]] = 2
    return split


def _quotas(
    units: NDArray[np.int64],
    strata: NDArray[np.int64],
    counts: NDArray[np.int64],
    ties: NDArray[np.float64],
    rule: SplitRule,
    cover: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many units of each stratum are for test and for validation.

    Args:
        units: ``(clients,)`` of each client.
        strata: ``(clients,)`` of each client.
        counts: units of each stratum.
        ties: random numbers that decide between strata with equal claims.
        rule: the shares.
        cover: whether each stratum should be in every split if possible.
    """
    least = [((units >= 3) & (share > 0)).astype(np.int64) for share in (rule.validation, rule.test)]
    test_total = np.minimum(np.maximum(np.rint(rule.test * units).astype(np.int64), least[1]), units - 1 - least[0])
    wanted = np.maximum(np.rint(rule.validation * units).astype(np.int64), least[0])
    validation_total = np.minimum(wanted, units - 1 - test_total)
    begin = strata.cumsum() - strata
    found = np.zeros_like(counts), np.zeros_like(counts)
    for number in np.unique(strata):
        clients = np.flatnonzero(strata == number)
        for some in np.split(clients, np.arange(TOGETHER, len(clients), TOGETHER)):
            places = begin[some, None] + np.arange(number)
            own, tie = counts[places], ties[places]
            left = own.copy()
            splits = ((rule.test, test_total, 2), (rule.validation, validation_total, 3))
            for quotas, (share, totals, enough) in zip(found, splits, strict=True):
                quota = np.floor(share * own + 1e-9).astype(np.int64)
                if cover and share > 0:
                    quota = np.maximum(quota, own >= enough)
                quota = np.minimum(quota, np.maximum(left - 1, 0))
                lacking = totals[some] - quota.sum(1)
                while len(short := np.flatnonzero(lacking > 0)):
                    due = share * own[short] - quota[short] + tie[short]
                    rest = left[short] - quota[short]
                    due -= (rest == 1) * units[some][short, None]  # the last of its class stays in train while it can
                    due[rest == 0] = -np.inf
                    quota[short, due.argmax(1)] += 1
                    lacking[short] -= 1
                left -= quota
                quotas[places] = quota
    return found


def _by_time(units: _Units, time: NDArray[Any], rule: SplitRule) -> NDArray[np.int64]:
    """Split of each unit: the earliest train, then validation, then test."""
    sizes = np.bincount(units.of)
    by_unit = np.lexsort((time, units.of))
    start = time[by_unit][sizes.cumsum() - sizes]  # the first time of each unit
    client = units.client
    order = np.lexsort((start, client))
    ends = sizes[order].cumsum()
    before = np.r_[0, ends][units.start].repeat(units.counts)
    middle = ends - before - sizes[order] / 2
    rows = np.bincount(client, weights=sizes, minlength=len(units.counts))
    least_validation, least_test = int(rule.validation > 0), int(rule.test > 0)

    def earlier(share: float) -> NDArray[np.int64]:
        """How many of each client's units lie before a share of its rows."""
        return np.bincount(client[middle < (rows * share).repeat(units.counts)], minlength=len(units.counts))

    first_test = np.minimum(np.maximum(earlier(1 - rule.test), 1 + least_validation), units.counts - least_test)
    first_validation = np.minimum(
        np.maximum(earlier(1 - rule.test - rule.validation), 1), first_test - least_validation
    )
    place = np.arange(len(client)) - units.start.repeat(units.counts)
    split = np.zeros(len(client), dtype=np.int64)
    later = units.counts.repeat(units.counts) >= 3
    split[order[later & (place >= first_validation.repeat(units.counts))]] = 1
    split[order[later & (place >= first_test.repeat(units.counts))]] = 2
    return split
