"""Splits: disjoint, complete, stratified, grouped, timed, and independent of everything but the client's own rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alone import divide
from plures.errors import PluresError
from plures.federation import SPLITS, Split, SplitRule, from_arrays, split_rows
from plures.federation.seeding import Generators, generator


def test_splits_cover_every_row_once():
    client = np.random.default_rng(0).integers(0, 7, 500)
    names, splits = split_rows(client, labels=np.arange(500) % 4)
    rows = np.concatenate([splits[s].rows.numpy() for s in SPLITS])
    assert sorted(rows.tolist()) == list(range(500))
    for number, name in enumerate(names):
        for split in SPLITS:
            assert (client[splits[split][number].numpy()] == int(name)).all()


def test_shares_and_strata_are_exact():
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    _, splits = split_rows(["a"] * 200, labels=labels, rule=SplitRule(validation=0.15, test=0.25))
    counts = {s: np.bincount(labels[splits[s][0].numpy()]).tolist() for s in SPLITS}
    assert counts == {"train": [60, 36, 24], "validation": [15, 9, 6], "test": [25, 15, 10]}


def test_rare_classes_train_first():
    labels = np.array([0] * 30 + [1, 2, 3])
    for seed in range(5):
        _, splits = split_rows(["a"] * 33, labels=labels, seed=seed)
        assert {1, 2, 3} <= set(labels[splits["train"][0].numpy()].tolist())
        assert [len(splits[s][0]) for s in SPLITS] == [20, 5, 8]


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [1, 1, 1]), (4, [2, 1, 1])])
@pytest.mark.parametrize("by", ["random", "time"])
def test_small_clients_keep_a_training_row(rows: int, sizes: list[int], by: str):
    _, splits = split_rows(["a"] * rows, labels=np.arange(rows), time=np.arange(rows), rule=SplitRule(by=by))
    assert [len(splits[s][0]) for s in SPLITS] == sizes


def test_groups_stay_together_and_cover_every_class():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, 24)
    groups = np.repeat(np.arange(24), sizes)
    labels = groups % 6
    order = rng.permutation(len(groups))
    groups, labels = groups[order], labels[order]
    for seed in range(10):
        _, splits = split_rows(["a"] * len(groups), labels=labels, groups=groups, seed=seed)
        owners = [set(groups[splits[s][0].numpy()].tolist()) for s in SPLITS]
        assert sum(map(len, owners)) == 24
        assert set.union(*owners) == set(range(24))
        for s in SPLITS:
            assert set(labels[splits[s][0].numpy()].tolist()) == set(range(6))


def test_time_order_with_and_without_groups():
    rng = np.random.default_rng(2)
    time = rng.permutation(200)
    for groups in (None, time // 7):
        _, splits = split_rows(["a"] * 200, time=time, groups=groups, rule=SplitRule(by="time"))
        train, validation, test = (time[splits[s][0].numpy()] for s in SPLITS)
        assert train.max() < validation.min()
        assert validation.max() < test.min()
        slack = 0 if groups is None else 7
        assert abs(len(train) - 120) <= slack
        assert abs(len(test) - 50) <= slack
        if groups is not None:
            assert not set(train // 7) & set(validation // 7)
            assert not set(validation // 7) & set(test // 7)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_split_depends_on_the_clients_own_rows_alone(grouped: bool):
    rng = np.random.default_rng(3)
    client = rng.choice(["a", "b", "c"], 300)
    labels, keys, groups = rng.integers(0, 3, 300), np.arange(300), np.arange(300) // 5

    def contents(rows: np.ndarray) -> dict[str, dict[str, set[int]]]:
        names, splits = split_rows(
            client[rows], labels=labels[rows], keys=keys[rows], groups=groups[rows] if grouped else None, seed=9
        )
        return {
            name: {s: set(keys[rows][splits[s][i].numpy()].tolist()) for s in SPLITS} for i, name in enumerate(names)
        }

    everything = contents(np.arange(300))
    assert contents(rng.permutation(300)) == everything
    without_b = contents(np.flatnonzero(client != "b"))
    assert without_b == {name: everything[name] for name in "ac"}


def test_seeds_and_names_give_different_splits():
    first = split_rows(["a"] * 100 + ["b"] * 100, seed=0)[1]["test"]
    assert set(first[0].tolist()) != {row - 100 for row in first[1].tolist()}
    assert first[0].tolist() != split_rows(["a"] * 100, seed=1)[1]["test"][0].tolist()


def test_bad_rules_are_refused():
    with pytest.raises(PluresError, match=r"validation=0.5 and test=0.5"):
        SplitRule(0.5, 0.5)
    with pytest.raises(PluresError, match="by='space'"):
        SplitRule(by="space")  # type: ignore[arg-type]
    with pytest.raises(PluresError, match="give the time column"):
        split_rows(["a"], rule=SplitRule(by="time"))
    with pytest.raises(PluresError, match="labels: 2 values for 3 rows"):
        split_rows(["a"] * 3, labels=[0, 1])


def test_shares_of_zero_are_empty():
    for by in ("random", "time"):
        _, splits = split_rows(["a"] * 9, time=np.arange(9), rule=SplitRule(0, 0.3, by=by))
        assert [len(splits[s][0]) for s in SPLITS] == [6, 0, 3]


def test_generators_side_by_side_draw_what_each_draws_alone():
    """Also those for which NumPy draws more words than usual, and those that are too long to be computed together."""
    rng = np.random.default_rng(0)
    names = [f"ward {number}" for number in range(3_000)]
    numbers, sizes = rng.integers(0, 12, 3_000), rng.integers(0, 80, 3_000)
    drawn, orders = Generators((7, "split"), names).shuffled(numbers, sizes)
    drawn, orders = np.split(drawn, numbers.cumsum()[:-1]), np.split(orders, sizes.cumsum()[:-1])
    for name, found, order in zip(names, drawn, orders, strict=True):
        own = generator(7, "split", name)
        assert np.array_equal(own.random(len(found)), found)
        assert np.array_equal(own.permutation(len(order)), order)


@pytest.mark.parametrize("trial", range(40))
def test_all_clients_at_once_are_divided_as_each_is_alone(trial):
    rng = np.random.default_rng(trial)
    rows = int(rng.integers(1, 400))
    client = rng.integers(0, 30, rows)
    words = np.array(["no", "yes", "maybe"])[rng.integers(0, 3, rows)]
    labels = [None, words, rng.integers(0, 8, rows)][trial % 3]
    groups = [None, rng.integers(0, 25, rows), words.astype(object)][trial // 3 % 3]
    keys = [None, rng.random(rows), np.array([rng.bytes(16) for _ in range(rows)])][trial // 9 % 3]
    by = "time" if trial % 5 == 4 else "random"
    time = rng.integers(0, 50, rows) if by == "time" else None
    rule = SplitRule(float(rng.choice([0, 0.1, 0.3])), float(rng.choice([0, 0.25, 0.45])), by)
    names, splits = split_rows(client, labels=labels, groups=groups, time=time, keys=keys, rule=rule, seed=trial)
    for place, name in enumerate(names):
        own = np.flatnonzero(client == int(name))
        given = [None if column is None else column[own] for column in (labels, groups, time, keys)]
        which = divide(len(own), rule, generator(trial, "split", name), *given)
        for number, split in enumerate(SPLITS):
            assert splits[split][place].tolist() == own[which == number].tolist()


def test_rows_of_some_clients_in_any_order():
    split = Split.of([torch.tensor(rows, dtype=torch.int64) for rows in ([3, 1], [], [0], [7, 8, 9])])
    taken = split.take([3, 1, 0])
    assert [rows.tolist() for rows in taken] == [[7, 8, 9], [], [3, 1]]
    assert split.owners.tolist() == [0, 0, 2, 3, 3, 3]
    assert len(split.take([])) == 0


def test_a_zero_is_a_zero_whatever_its_sign():
    """A file may drop the sign of a zero; the rows of a client are divided in the same way."""
    x = np.linspace(-1, 1, 41, dtype=np.float32).round(1)[:, None]
    targets, client = np.arange(41) % 2, ["a"] * 41
    assert np.signbit(x[x == 0]).any()
    one, other = (
        from_arrays(inputs, targets, client, copies="allow") for inputs in (x, np.where(x == 0, np.float32(0), x))
    )
    for split in SPLITS:
        assert torch.equal(one.splits[split].rows, other.splits[split].rows)
