"""The store of clients' leaves: memory and disk hold the same values, and a large population costs nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plures.errors import PluresError
from plures.methods import ditto, fedbn
from plures.run import Execution, Uniform
from plures.run.checkpoint import restore, snapshot
from plures.run.store import ClientStore, DiskRows
from trajectories import assert_same, everything_of, normed, run

INITIAL = {
    ("model", "w"): torch.arange(6.0, dtype=torch.float64).view(2, 3),
    ("model", "half"): torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    ("model", "count"): torch.tensor(7),
    ("alpha", "alpha"): torch.tensor(0.25),
    ("model", "none"): torch.empty(0, 4),
}


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path) -> ClientStore:
    return ClientStore(INITIAL, 50, tmp_path / "new" / "folder" if request.param == "disk" else None)


def fill(store: ClientStore, clients: list[int]) -> None:
    for leaf, value in INITIAL.items():
        scale = torch.tensor(clients).view(-1, *(1,) * value.dim())
        store.put(leaf, clients, (value.unsqueeze(0) + scale).to(value.dtype))
    store.mark(clients)


def test_a_client_that_was_never_visited_has_the_initial_values(store):
    fill(store, [3, 41])
    for leaf, value in INITIAL.items():
        rows = store.get(leaf, [41, 0, 3])
        assert rows.dtype == value.dtype
        assert rows.shape == (3, *value.shape)
        assert torch.equal(rows[1], value)
        assert torch.equal(rows[0], (value + 41).to(value.dtype))
        assert torch.equal(rows[2], (value + 3).to(value.dtype))


def test_what_is_read_is_a_copy(store):
    fill(store, [1])
    store.get(("model", "w"), [1]).zero_()
    store.get(("model", "w"), [2]).zero_()
    assert torch.equal(store.get(("model", "w"), [1, 2])[0], INITIAL["model", "w"] + 1)
    assert torch.equal(store.get(("model", "w"), [1, 2])[1], INITIAL["model", "w"])


def test_rows_can_be_strided_and_expanded(store):
    wide = torch.arange(24.0, dtype=torch.float64).view(3, 2, 4).transpose(1, 2)[:, :3].transpose(1, 2)
    store.put(("model", "w"), [4, 2, 9], wide)
    store.put(("alpha", "alpha"), [4, 2, 9], torch.tensor(3.0).expand(3))
    store.mark([2, 4, 9])
    assert torch.equal(store.get(("model", "w"), [2, 4, 9]), wide[[1, 0, 2]])
    assert store.get(("alpha", "alpha"), [2, 4, 9]).tolist() == [3.0] * 3


def test_mean_over_the_visited(store):
    for leaf, value in INITIAL.items():
        assert torch.equal(store.mean(leaf), value)
    fill(store, [0, 1, 5])
    assert torch.equal(store.mean(("model", "w")), INITIAL["model", "w"] + 2)
    assert store.mean(("model", "count")).item() == 9
    assert store.mean(("alpha", "alpha")).item() == 2.25


def test_snapshot_and_restore(store, tmp_path):
    fill(store, [8, 2])
    visited, rows = store.visited.clone(), store.snapshot()
    for folder in (None, tmp_path):
        other = ClientStore(INITIAL, 50, folder)
        fill(other, [5])
        other.restore(visited, rows)
        assert torch.equal(other.visited, visited)
        for leaf in INITIAL:
            assert torch.equal(other.get(leaf, list(range(50))), store.get(leaf, list(range(50))))
    assert torch.equal(rows["model", "count"], torch.tensor([9, 15]))


def test_membership(store):
    assert ("model", "w") in store
    assert ("model", "v") not in store


@pytest.mark.parametrize("method", [ditto(0.5), fedbn()], ids=["ditto", "fedbn"])
def test_runs_in_memory_and_on_disk_are_the_same(method, tmp_path):
    options = {"model": normed, "participation": Uniform(0.5), "rounds": 3}
    here = run(method, Execution("vmap", 3, False, "float64"), **options)
    there = run(method, Execution("vmap", 3, False, "float64", clients_on_disk=tmp_path), **options)
    assert list(tmp_path.iterdir())
    assert_same(everything_of(there), everything_of(here), atol=0.0)
    del there
    assert not list(tmp_path.iterdir())


def test_a_round_that_was_written_for_some_clients_alone_is_not_gone_on_with(tmp_path, monkeypatch):
    """The disk fills up between two chunks of a round: half a round is neither continued nor saved."""
    disk = Execution("vmap", 1, False, "float64", clients_on_disk=tmp_path)
    done, whole = (run(ditto(0.5), disk, model=normed, rounds=3) for _ in range(2))
    for each in (done, whole):
        each.training = replace(each.training, rounds=9)
        del each.losses  # of the rounds so far, which the helper records instead of the method
    before, true, written = snapshot(done), DiskRows.write, []

    def fills(rows, clients, values):
        written.append(clients)
        if len(written) > 2:
            raise PluresError("the clients' leaves cannot be written: No space left on device")
        true(rows, clients, values)

    monkeypatch.setattr(DiskRows, "write", fills)
    with pytest.raises(PluresError, match="No space left"):
        done.step()
    monkeypatch.setattr(DiskRows, "write", true)
    for work in (done.step, lambda: snapshot(done)):
        with pytest.raises(PluresError, match="round 4 was written for some clients and not for others"):
            work()
    restore(done, before)
    done.step(), whole.step()
    assert_same(snapshot(done), snapshot(whole), atol=0.0)


def test_a_million_clients_on_disk_are_instant_and_sparse(tmp_path):
    begun = time.process_time()
    store = ClientStore({("model", "w"): torch.ones(100), ("alpha", "alpha"): torch.tensor(0.5)}, 1_000_000, tmp_path)
    last = [999_999, 5]
    store.put(("model", "w"), last, torch.full((2, 100), 4.0))
    store.mark(last)
    assert torch.equal(store.get(("model", "w"), [7, 999_999])[:, 0], torch.tensor([1.0, 4.0]))
    assert store.mean(("model", "w")).mean().item() == 4.0
    assert time.process_time() - begun < 2.0
    files = [path.stat() for path in tmp_path.rglob("*.bin")]
    assert sum(file.st_size for file in files) == 404_000_000
    assert sum(file.st_blocks for file in files) * 512 < 1_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_message(tmp_path):
    store = ClientStore({("model", "w"): torch.ones(3)}, 10, tmp_path)
    store._rows["model", "w"]._file = open("/dev/full", "r+b")  # noqa: SIM115
    with pytest.raises(PluresError, match=r"No space left on device; free some space.*clients_on_disk"):
        store.put(("model", "w"), [3], torch.zeros(1, 3))
    assert torch.equal(store.get.__self__.visited, torch.zeros(10, dtype=torch.bool))


def test_neighbours_are_read_and_written_together_in_any_order(store):
    """Consecutive clients, isolated clients, and clients in reverse order or twice."""
    clients = [7, 8, 9, 3, 20, 19, 18, 0, 1]
    fill(store, clients)
    asked = [9, 3, 4, 5, 0, 1, 2, 20, 20, 7, 8]
    for leaf, value in INITIAL.items():
        own = [(value + client).to(value.dtype) if client in clients else value for client in asked]
        assert torch.equal(store.get(leaf, asked), torch.stack(own))
    assert store.get(("model", "w"), []).shape == (0, 2, 3)
