"""Batches depend only on seed, client, round and stream, and are random."""

from __future__ import annotations

import numpy as np
import pytest

from plures.method import Method, Phase
from plures.methods import ditto, fedavg
from plures.run import Execution, Run, Training
from plures.run.randomness import branch, fold, orders
from trajectories import LOOP, SIZES, WIDE, mlp, ragged


def engine(method=None, federation=None, execution=LOOP, seed=0, **training):
    options = {"batch_size": 8, "epochs": 2} | training
    made = Run(federation or ragged(), mlp, method or fedavg(), Training(**options), seed=seed, execution=execution)
    return made.engine


def seen(
    made, client: str, round: int = 0, phase: Phase | None = None, beside: tuple[str, ...] = ()
) -> list[list[int]]:
    """Rows of every batch that a client sees, when drawn in a chunk with others."""
    names = sorted({client, *beside}, key=lambda n: -int(made.federation.splits["train"].sizes[names_of(made, n)]))
    chunk = [names_of(made, name) for name in names]
    plan = made.draw(phase or made.bound.method.schedule[-1], chunk, round)
    position = names.index(client)
    steps = int(plan.steps[position])
    own = plan.counts[:steps, 0, position]
    return [rows[:count].tolist() for rows, count in zip(plan.rows[:steps, 0, position], own, strict=True)]


def names_of(made, client: str) -> int:
    return made.federation.index(client)


EVERYBODY = tuple(f"c{i}" for i in range(len(SIZES)))


@pytest.mark.parametrize("client", EVERYBODY)
def test_batches_do_not_depend_on_the_company(client):
    expected = seen(engine(), client, 3)
    assert seen(engine(), client, 3, beside=EVERYBODY) == expected
    assert seen(engine(), client, 3, beside=("c0", "c1")) == expected
    assert seen(engine(execution=WIDE), client, 3, beside=EVERYBODY) == expected
    assert seen(engine(execution=Execution("vmap", 4, True, "float64")), client, 3, beside=EVERYBODY) == expected
    assert seen(engine(federation=ragged().subset(sorted({client, "c6"}))), client, 3) == expected
    assert seen(engine(federation=ragged().subset([client])), client, 3) == expected


def test_more_slots_do_not_change_the_batches_of_a_slot():
    both = engine(ditto(1.0))
    personal, model = both.bound.method.schedule
    for client in EVERYBODY:
        expected = seen(engine(), client, 1)
        assert seen(both, client, 1, model) == expected
        assert seen(both, client, 1, personal) == expected


def test_seed_round_client_and_stream_each_change_the_batches():
    streams = engine(Method(schedule=(Phase(stream="one"), Phase(stream="two"))))
    drawn = [seen(streams, "c0", 0, phase) for phase in streams.bound.method.schedule]
    drawn += [seen(engine(seed=seed), "c0", round) for seed in (0, 1) for round in (0, 1, 2)]
    flat = [tuple(row for batch in batches for row in batch) for batches in drawn]
    assert len(set(flat)) == len(flat)


def test_epochs_of_a_visit_have_different_orders():
    batches = seen(engine(epochs=4), "c0")
    epochs = [tuple(row for batch in batches[i : i + 5] for row in batch) for i in range(0, 20, 5)]
    assert len(set(epochs)) == 4
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1


def test_two_clients_of_one_size_have_different_orders():
    made = engine(federation=ragged((30, 30)))
    orders_of = [[row for batch in seen(made, c) for row in batch] for c in ("c0", "c1")]
    places = [
        [made.federation.splits["train"][i].tolist().index(row) for row in rows] for i, rows in enumerate(orders_of)
    ]
    assert places[0] != places[1]


def test_orders_are_uniform():
    """Chi-square of every example's position, and of neighbouring pairs, over many permutations."""
    size, count = 6, 6000
    keys = branch(fold(0, np.arange(count, dtype=np.uint64)), 1, 2)
    drawn = orders(keys, np.full(count, size), np.ones(count, dtype=np.int64)).reshape(count, size).astype(int)
    assert (np.sort(drawn, 1) == np.arange(size)).all()
    table = np.stack([np.bincount(drawn[:, place], minlength=size) for place in range(size)])
    statistic = ((table - count / size) ** 2 / (count / size)).sum()
    degrees = (size - 1) ** 2
    assert abs(statistic - degrees) < 4.5 * (2 * degrees) ** 0.5
    follows = np.zeros((size, size))
    np.add.at(follows, (drawn[:, :-1].ravel(), drawn[:, 1:].ravel()), 1)
    expected = count * (size - 1) / (size * (size - 1))
    off = follows[~np.eye(size, dtype=bool)]
    assert np.abs(off - expected).max() < 5 * expected**0.5
    assert len(np.unique(drawn @ size ** np.arange(size))) == 720


def test_orders_of_clients_do_not_depend_on_each_other(monkeypatch):
    keys, sizes, epochs = fold(1, np.arange(3, dtype=np.uint64)), np.array([5, 1, 300]), np.array([3, 2, 1])
    expected = orders(keys, sizes, epochs)
    parts = np.split(expected, np.cumsum(sizes * epochs)[:-1])
    for i, part in enumerate(parts):
        assert (np.sort(part.reshape(epochs[i], sizes[i]), 1) == np.arange(sizes[i])).all()
        assert np.array_equal(part, orders(keys[i : i + 1], sizes[i : i + 1], epochs[i : i + 1]))
    monkeypatch.setattr("plures.run.randomness.PLACE", 8)
    assert np.array_equal(orders(keys, sizes, epochs), expected), "the path for very large clients"


def test_keys_of_numbers_and_of_arrays_agree():
    array = fold(7, np.arange(5, dtype=np.uint64), 3)
    assert [int(fold(7, i, 3)) for i in range(5)] == array.tolist()
    assert len({int(fold(a, b)) for a in range(30) for b in range(30)}) == 900
    assert int(fold(-1)) != int(fold(1))
    keys = fold(0, np.arange(4096, dtype=np.uint64))
    bits = ((keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / 64
