"""Buffered asynchronous aggregation, computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plures.errors import PluresError
from plures.hardware import FleetTable
from plures.methods import METHODS, ditto, fedavg, fedper, ifca, scaffold
from plures.run import Buffered, Execution, Fixed, Full, Uniform
from plures.run.checkpoint import restore, snapshot
from problems import BodyHead, begun, close, quadratic, run, weight
from trajectories import mlp, ragged

BYTE_A_SECOND = 8e-6
ROW = {"gflops": 80e-9, "up_mbit": 8 * BYTE_A_SECOND, "down_mbit": 16 * BYTE_A_SECOND, "joules_per_gflop": 1e9}
FAST = {"gflops": 1.0, "up_mbit": 1.0, "down_mbit": 2.0}
"""Visits of two steps take 2.5, 3.5 and 4.5 seconds with ``ROW``, by their operations: 80, 160 and 240."""
PAIR = quadratic((1.0, 2.0), (-1.0, 0.5), (10, 20))
FEW = [METHODS[name] for name in ("fedavg", "scaffold", "fedper", "ditto", "fedavgm")]


def table(clients="abc", **own):
    return FleetTable({name: {**ROW, **own.get(name, {}), **own.get("all", {})} for name in clients})


def trained(start, a, b, steps=2):
    return b + (1 - 0.1 * a) ** steps * (start - b)


@pytest.mark.oracle("SF5")
def test_two_clients_with_known_delays():
    """a sends after 2.5, 5.0, 7.5 seconds, b after 3.5 and 7.0; a change of age 1 counts 2 ** -0.5 times."""
    run = begun(fedavg(), 4, federation=PAIR, participation=Buffered(Full(), table("ab"), size=1))
    w, records = [0.0], list(run.rounds())
    old = 2**-0.5
    w.append(trained(w[0], 1, -1))
    w.append(w[1] + old * (trained(w[0], 2, 0.5) - w[0]))
    w.append(w[2] + old * (trained(w[1], 1, -1) - w[1]))
    w.append(w[3] + old * (trained(w[2], 2, 0.5) - w[2]))
    assert [record.cohort for record in records] == [("a",), ("b",), ("a",), ("b",)]
    assert [record.hours * 3600 for record in records] == close([2.5, 1.0, 1.5, 2.0])
    assert [record.joules for record in records] == close([80, 160, 80, 160])
    assert weight(run) == close(w[4])


@pytest.mark.oracle("SF5")
def test_a_buffer_of_two_of_three():
    """a (2.5 s) and b (3.5 s) make the first step; then c (4.5 s), one step old, and a, which began again at 3.5 s."""
    run = begun(fedavg(), 2, participation=Buffered(Full(), table(), size=2, staleness=1.0))
    first, second = run.rounds()
    assert first.cohort == ("a", "b")
    assert first.hours * 3600 == close(3.5)
    assert second.cohort == ("a", "c")
    assert second.hours * 3600 == close(2.5)
    one = (10 * trained(0, 1, -1) + 20 * trained(0, 2, 0.5)) / 30
    changes = 10 * (trained(one, 1, -1) - one) + 30 * 0.5 * (trained(0, 4, 3) - 0)
    assert weight(run) == close(one + changes / 40)


def test_uniform_weights_give_the_mean_of_the_scaled_changes_of_the_paper():
    run = begun(fedavg(weights="uniform"), 2, participation=Buffered(Full(), table(), size=2))
    list(run.rounds())
    one = (trained(0, 1, -1) + trained(0, 2, 0.5)) / 2
    assert weight(run) == close(one + (trained(one, 1, -1) - one + 2**-0.5 * trained(0, 4, 3)) / 2)


@pytest.mark.parametrize("method", FEW, ids=lambda method: method.name)
@pytest.mark.oracle("SF4")
def test_with_room_for_all_it_is_a_synchronous_round_bit_for_bit(method):
    data, clients = ragged(), [f"c{i}" for i in range(7)]
    options = {"federation": data, "model": mlp, "batch_size": 4, "execution": Execution("vmap", 4, False, "float32")}
    plain = run(method(), 3, **options)
    whole = run(method(), 3, participation=Buffered(Full(), table(clients, all=FAST), size=7), **options)
    a, b = snapshot(plain), snapshot(whole)
    assert all(torch.equal(t, b[name]) for name, t in a.items())
    assert not whole.past


@pytest.mark.parametrize("method", [scaffold(), ditto()], ids=["scaffold", "ditto"])
def test_both_backends_and_any_chunk_agree(method):
    data, clients = ragged(), [f"c{i}" for i in range(7)]
    rule = Buffered(Uniform(0.6), table(clients, all=FAST, c1={**FAST, "gflops": 1e-5}), size=2)
    options = {"federation": data, "model": mlp, "batch_size": 4, "participation": rule}
    kinds = [Execution(backend, chunk, False, "float64") for backend, chunk in (("vmap", 8), ("vmap", 1), ("loop", 1))]
    first, *others = [snapshot(run(method, 6, execution=kind, **options)) for kind in kinds]
    for other in others:
        assert first.keys() == other.keys()
        for name, t in first.items():
            torch.testing.assert_close(other[name], t, rtol=1e-9, atol=1e-11, equal_nan=True)


def test_a_resumed_run_has_the_bits_of_one_that_went_on():
    rule = Buffered(Full(), table(c={"gflops": 15e-9}, b={"failure": 0.3}), size=1)
    whole, again = begun(scaffold(), 9, participation=rule), begun(scaffold(), 9, participation=rule)
    for _ in range(5):
        whole.step()
    assert whole.past, "c is at work with an earlier model"
    restore(again, snapshot(whole))
    assert [replace(r, seconds=0.0) for r in whole.rounds()] == [replace(r, seconds=0.0) for r in again.rounds()]
    a, b = snapshot(whole), snapshot(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(t, b[name]) for name, t in a.items())


def test_models_that_nobody_began_from_are_forgotten():
    run = begun(fedavg(), 12, participation=Buffered(Full(), table(c={"gflops": 15e-9}), size=1))
    for record in run.rounds():
        assert set(run.past) == {int(v) for v in run.pace["began"] if v >= 0 and v < record.round}
        assert len(run.past) <= 3


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        (fedavg(), {"size": 4}, "only 3 clients"),
        (fedavg(), {"size": 0}, "at least 1"),
        (fedavg(), {"size": 2, "staleness": -1.0}, "exponent"),
        (fedavg(), {"size": 2, "rule": Fixed([["a"]])}, "whole cohorts"),
        (ifca(clusters=2), {"size": 2}, "Clustered"),
        (METHODS["fednova"](), {"size": 2}, "weights of this round"),
        (METHODS["fedfomo"](), {"size": 2}, "buffered"),
    ],
)
def test_what_needs_a_cohort_of_one_version_is_refused_before_training(method, options, why):
    rule = options.pop("rule", Full())
    with pytest.raises(PluresError, match=why):
        begun(method, 2, participation=Buffered(rule, table(), **options), federation=quadratic())


def test_personal_heads_move_only_when_their_client_counts():
    rule = Buffered(Full(), table("ab", b={"gflops": 1e-9}), size=1)
    data = quadratic((1.0, 2.0), (-1.0, 0.5), (10, 20))
    run = begun(fedper(), 3, federation=data, model=BodyHead, participation=rule)
    records = list(run.rounds())
    assert [record.cohort for record in records] == [("a",)] * 3
    assert run.last.tolist() == [3, 0]
