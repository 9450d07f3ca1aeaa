"""A clock: times, drop-outs, partial work and energy of rounds, computed by hand.

A step of the one weight of the canonical problem is 4 operations for each example: two products, forward and backward.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.hardware import FleetTable
from plures.methods import METHODS, fedavg, local
from plures.run import BySize, Clocked, DropOut, Execution, Fixed, Full, Joint, Poisson, Uniform
from plures.run.checkpoint import restore, snapshot
from problems import CURVATURES, OPTIMA, SIZES, begun, close, quadratic, run, scalar, weight

BYTE_A_SECOND = 8e-6
"""Mbit per second."""
ROW = {
    "gflops": 80e-9,
    "up_mbit": 8 * BYTE_A_SECOND,
    "down_mbit": 16 * BYTE_A_SECOND,
    "joules_per_gflop": 1e9,
    "joules_per_mb_up": 1e6,
    "joules_per_mb_down": 0.5e6,
}
"""80 operations a second; a model of 8 bytes goes up in 1 second and down in half a second; a joule for each operation
and each byte up, half of it for a byte down. So visits of two steps take 2.5, 3.5 and 4.5 seconds."""


def table(**own):
    """The three clients' devices; ``own`` changes columns of single ones: ``a={"failure": 0.5}``."""
    return FleetTable({name: {**ROW, **own.get(name, {}), **own.get("all", {})} for name in "abc"})


def first(rule, **options):
    return begun(fedavg(), 1, participation=rule, **options).step()


@pytest.mark.oracle("SF1")
def test_a_round_takes_as_long_as_its_slowest_client():
    record = first(Clocked(Full(), table()))
    assert record.hours * 3600 == close(4.5)
    assert record.cohort == ("a", "b", "c")
    assert not record.left_out


@pytest.mark.oracle("SF1")
def test_energy_is_that_of_operations_and_bytes():
    run = begun(fedavg(), 1, participation=Clocked(Full(), table()))
    assert run.step().joules == close(80 + 160 + 240 + 3 * (8 + 4))
    assert run.pace["joules"].tolist() == close([92, 172, 252])
    assert run.pace["seconds"].tolist() == close([2.5, 3.5, 4.5])


@pytest.mark.oracle("SF2")
def test_a_deadline_leaves_the_slow_client_out_and_its_work_is_lost():
    run = begun(fedavg(), 1, participation=Clocked(Full(), table(), deadline=4.0))
    record = run.step()
    assert record.cohort == ("a", "b")
    assert record.hours * 3600 == close(4.0)
    assert record.left_out == {"c": "it takes 4.5 seconds, and the deadline is after 4"}
    assert record.joules == close(92 + 172 + 4 + 240 + 0.5 * 8)
    assert run.pace["outcomes"].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.oracle("SF2")
def test_partial_work_is_as_many_steps_as_there_is_time_for():
    run = begun(fedavg(), 1, participation=Clocked(Full(), table(), deadline=4.0, late="partial"))
    record = run.step()
    assert record.cohort == ("a", "b", "c")
    assert record.hours * 3600 == close(3.5), "c does one step of two, in 3 seconds"
    expected = [b + (1 - 0.1 * a) ** k * (0 - b) for a, b, k in zip(CURVATURES, OPTIMA, (2, 2, 1), strict=True)]
    assert weight(run) == close(np.average(expected, weights=SIZES))
    assert record.joules == close(92 + 172 + 120 + 12)


@pytest.mark.oracle("SF3")
def test_over_selection_waits_for_as_many_as_the_rule_draws():
    run = begun(fedavg(), 1, participation=Clocked(Uniform(0.3), table(), over_select=3.0))
    record = run.step()
    assert record.cohort == ("a",), "it is the first of the three that are asked"
    assert record.hours * 3600 == close(2.5)
    assert record.joules == close(92 + (4 + 160) + (4 + 160)), "b has computed and c has not, and neither has sent"
    assert run.pace["outcomes"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_who_is_not_there_is_not_asked():
    away = {"opens_hour": 1, "open_hours": 2}
    records = list(begun(fedavg(), 3, participation=Clocked(Full(), table(a=away))).rounds())
    assert [record.cohort for record in records] == [("b", "c")] * 3


def test_the_server_waits_for_a_client_and_loses_those_that_go_away():
    there = {"opens_hour": 1, "open_hours": 4 / 3600}
    run = begun(fedavg(), 2, participation=Clocked(Full(), table(all=there)))
    one, two = run.rounds()
    assert one.hours == close(1 + 4 / 3600)
    assert two.hours == close(24)
    assert one.cohort == two.cohort == ("a", "b")
    assert one.left_out == {"c": "its device failed or went away"}


def test_failures_have_the_probability_of_the_device():
    rounds = 150
    run = begun(fedavg(), rounds, participation=Clocked(Full(), table(b={"failure": 0.3})), steps=1)
    lost = sum("b" in record.left_out for record in run.rounds())
    assert abs(lost - 0.3 * rounds) < 4.5 * (0.3 * 0.7 * rounds) ** 0.5
    assert int(run.pace["outcomes"][2, 1]) == lost


def test_a_round_in_which_all_fail_is_asked_for_again_and_pays_for_it():
    run = begun(fedavg(), 40, participation=Clocked(Fixed([["b"]]), table(b={"failure": 0.5})))
    records = list(run.rounds())
    assert all(record.cohort == ("b",) for record in records)
    tries = int(run.pace["outcomes"][:, 1].sum())
    assert tries > 50
    assert sum(record.hours for record in records) * 3600 == close(float(run.pace["seconds"][1]))
    assert sum(record.hours for record in records) * 3600 > 40 * 3.5


@pytest.mark.parametrize("rule", [Full(), Uniform(0.7), BySize(0.7)])
@pytest.mark.oracle("SF0")
def test_without_deadline_and_failure_the_clock_changes_no_bit(rule):
    plain = run(fedavg(), 7, participation=rule)
    timed = run(fedavg(), 7, participation=Clocked(rule, table()))
    assert torch.equal(plain.last, timed.last)
    assert weight(plain) == weight(timed)


def test_methods_that_send_nothing_wait_for_nobody():
    rule = Joint(Clocked(Full(), table(c={"failure": 0.9}), deadline=4.0))
    records = list(begun(local(), 3, participation=rule).rounds())
    assert [record.cohort for record in records] == [("a", "b", "c")] * 3
    assert [record.hours * 3600 for record in records] == close([3.0] * 3), "they only compute"


def test_a_resumed_run_has_the_bits_of_one_that_went_on():
    rule = Clocked(Uniform(0.7), table(all={"failure": 0.2, "open_hours": 20}), deadline=4.0, late="partial")
    whole, begun_again = begun(fedavg(), 8, participation=rule), begun(fedavg(), 8, participation=rule)
    for _ in range(4):
        whole.step()
    restore(begun_again, snapshot(whole))
    rest = [(list(one.rounds()), one) for one in (whole, begun_again)]
    assert next([replace(r, seconds=0.0) for r in records] for records, _ in rest) == [
        replace(r, seconds=0.0) for r in rest[1][0]
    ]
    assert weight(whole) == weight(begun_again)


def test_partial_work_is_the_same_in_both_backends_and_any_chunk():
    rule = Clocked(Full(), table(), deadline=4.0, late="partial")
    runs = [
        run(
            fedavg(),
            5,
            participation=rule,
            batch_size=4,
            steps=7,
            execution=Execution(backend, chunk, False, "float64"),
        )
        for backend, chunk in (("vmap", 16), ("vmap", 2), ("loop", 1))
    ]
    assert [weight(one) for one in runs] == close([weight(runs[0])] * 3)


# --- partial work ---------------------------------------------------------------------------------------------------


def after_a_round(method, start):
    """The weight after a round in which ``c`` has time for 3 of 8 steps."""
    rule = Clocked(Full(), table(c={"gflops": 30e-9}), deadline=1.5 + 3 * 4 + 1.5, late="partial")
    done = begun(method, 1, participation=rule, lr=0.002, steps=8, model=scalar(start))
    done.step()
    assert done.turn.efforts == {2: 3 / 8}
    return weight(done)


def fixed(shares):
    return sum(s * b for s, b in zip(shares, OPTIMA, strict=True)) / sum(shares)


@pytest.mark.oracle("NV2")
def test_partial_work_biases_fedavg_and_fednova_mends_it():
    """A round pulls with p_i (1 - (1 - lr a_i)^K_i) towards each optimum, in FedNova with 1 / K_i of that."""
    pulls = [n * (1 - (1 - 0.002 * a) ** k) for n, a, k in zip(SIZES, CURVATURES, (8, 8, 3), strict=True)]
    plain, mended = fixed(pulls), fixed([p / k for p, k in zip(pulls, (8, 8, 3), strict=True)])
    assert after_a_round(fedavg(), plain) == pytest.approx(plain, abs=1e-6), "it is at rest there"
    assert after_a_round(METHODS["fednova"](), mended) == pytest.approx(mended, abs=1e-6)
    best = fixed([n * a for n, a in zip(SIZES, CURVATURES, strict=True)])
    assert abs(mended - best) < 0.02 < 0.3 < abs(plain - best)


@pytest.mark.oracle("NV0")
def test_fednova_with_equal_steps_is_fedavg():
    assert weight(run(METHODS["fednova"](), 9)) == pytest.approx(weight(run(fedavg(), 9)), rel=1e-14)


@pytest.mark.oracle("NV1")
def test_fednova_by_hand():
    """p = 1/6, 1/3, 1/2; changes of 2, 2 and 1 steps from 0; tau_eff = 1/2 * 2 + 1/2 * 1."""
    rule = Clocked(Full(), table(), deadline=5.0, late="partial")  # a weight travels, too, for one second
    done = run(METHODS["fednova"](), 1, participation=rule)
    changes = [-((1 - 0.1 * a) ** k) * b + b for a, b, k in zip(CURVATURES, OPTIMA, (2, 2, 1), strict=True)]
    expected = 1.5 * (changes[0] / 2 / 6 + changes[1] / 2 / 3 + changes[2] / 2)
    assert weight(done) == close(expected)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Clocked(Full()), "needs devices"),
        (lambda: Clocked(Full(), table(), deadline=0.0), "deadline"),
        (lambda: Clocked(Full(), table(), late="partial"), "with a deadline alone"),
        (lambda: Clocked(Full(), table(), over_select=0.5), "from 1"),
        (lambda: Clocked(Full(), table(), over_select=1.5), "uniform"),
        (lambda: Clocked(Poisson(0.5), table()), "by chance"),
        (lambda: Clocked(DropOut(Full(), 0.5), table()), "by chance"),
        (lambda: begun(fedavg(), 1, participation=Clocked(Full(), table(), deadline=2.4)), "no client can be done"),
        (lambda: begun(fedavg(), 1, participation=Clocked(Full(), table(all={"memory_mb": 1e-6}))), "memory"),
        (lambda: begun(fedavg(), 1, participation=Clocked(Full(), FleetTable({"a": ROW}))), "client 'b' is not in"),
        (lambda: begun(fedavg(), 1, participation=Clocked(Full(), table(b={"gflops": "fast"}))), "gflops 'fast'"),
        (lambda: begun(fedavg(), 1, participation=Clocked(Full(), table(b={"failure": 1}))), "failure of client 'b'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(make, why):
    with pytest.raises(PluresError, match=why):
        make()


def test_a_device_without_the_memory_is_never_asked():
    run = begun(fedavg(), 3, participation=Clocked(Full(), table(b={"memory_mb": 1e-5})))
    assert [record.cohort for record in run.rounds()] == [("a", "c")] * 3
    assert run.federation.clients == ("a", "b", "c")
    assert quadratic().clients == run.federation.clients
