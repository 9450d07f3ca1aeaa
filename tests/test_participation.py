"""Participation: sizes, chances and determinism of the cohorts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plures import RunSpec
from plures.errors import PluresError
from plures.method import SGD, Combine, Method, ServerOptimizer, Setting
from plures.methods import cfl, ditto, fedavg, fedopt, ifca, local, scaffold
from plures.run import BySize, DropOut, Fixed, Full, Joint, Poisson, Run, Training, Uniform
from plures.run.checkpoint import snapshot
from trajectories import LOOP, SIZES, mlp, ragged

DATA = Setting.of(ragged())
RULES = [
    Full(),
    Uniform(0.4),
    BySize(0.4),
    Fixed([["c1", "c0"], ["c6"]]),
    DropOut(Uniform(0.7), 0.4),
    Poisson(0.4),
    Poisson(0.6, 3),
]


@pytest.mark.parametrize("rule", RULES)
def test_cohorts_are_sorted_distinct_and_a_function_of_seed_and_round(rule):
    for round in range(20):
        cohort = rule.cohort(DATA, 5, round)
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(range(len(SIZES)))
        assert cohort == rule.cohort(DATA, 5, round)


@pytest.mark.parametrize("rule", [Uniform(0.4), BySize(0.4), Poisson(0.4)])
def test_rounds_and_seeds_have_their_own_cohorts(rule):
    assert len({tuple(rule.cohort(DATA, 0, round)) for round in range(30)}) > 10
    assert [rule.cohort(DATA, 0, r) for r in range(10)] != [rule.cohort(DATA, 1, r) for r in range(10)]


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 7), (0.5, 4), (0.4, 3), (0.2, 1), (0.01, 1)])
@pytest.mark.parametrize("rule", [Uniform, BySize])
def test_size_of_a_cohort(rule, fraction, size):
    assert {len(rule(fraction).cohort(DATA, 0, round)) for round in range(10)} == {size}


def test_full_and_fixed():
    assert Full().cohort(DATA, 0, 3) == list(range(7))
    rule = Fixed([["c3", "c0", "c3"], ["c6"]])
    assert [rule.cohort(DATA, 9, round) for round in range(3)] == [[0, 3], [6], [0, 3]]


def test_uniform_cohorts_are_uniform():
    rounds = 4000
    counts = np.bincount([i for r in range(rounds) for i in Uniform(0.43).cohort(DATA, 0, r)], minlength=7)
    expected = rounds * 3 / 7
    assert np.abs(counts - expected).max() < 4.5 * (rounds * 3 / 7 * 4 / 7) ** 0.5


def test_one_client_by_size_has_a_chance_proportional_to_its_examples():
    rounds = 4000
    counts = np.bincount([i for r in range(rounds) for i in BySize(0.1).cohort(DATA, 0, r)], minlength=7)
    chance = np.array(SIZES) / sum(SIZES)
    assert (np.abs(counts - rounds * chance) < 4.5 * (rounds * chance * (1 - chance)) ** 0.5).all()


def test_pairs_by_size_follow_successive_sampling():
    rounds, p = 4000, np.array(SIZES) / sum(SIZES)
    counts = np.bincount([i for r in range(rounds) for i in BySize(0.3).cohort(DATA, 0, r)], minlength=7)
    chance = np.array([p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(7) if j != i) for i in range(7)])
    assert (np.abs(counts - rounds * chance) < 4.5 * (rounds * chance * (1 - chance)) ** 0.5).all()


def test_every_method_meets_the_same_cohorts():
    options = {"participation": Uniform(0.4), "seed": 11, "execution": LOOP}
    seen = []
    for method in (fedavg(), local(), ditto(), scaffold()):
        done = Run(ragged(), mlp, method, Training(rounds=4, steps=1), **options)
        seen.append([record.cohort for record in done.rounds()])
    assert all(cohorts == seen[0] for cohorts in seen)
    assert len(set(seen[0])) > 1


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
@pytest.mark.parametrize("rule", [Uniform, BySize])
def test_a_bad_fraction_is_named(rule, fraction):
    with pytest.raises(PluresError, match=f"fraction[ =]{fraction}"):
        rule(fraction)


@pytest.mark.parametrize("cohorts", [[], [[]], [["a"], []]])
def test_fixed_cohorts_need_clients(cohorts):
    with pytest.raises(PluresError, match="at least one client"):
        Fixed(cohorts)


def test_fixed_cohorts_name_an_unknown_client():
    with pytest.raises(PluresError, match="no client 'zoe'"):
        Fixed([["zoe"]]).cohort(DATA, 0, 0)


def test_clients_drop_out_with_their_probability_each_on_its_own():
    rounds, share = 3000, 0.3
    came = np.zeros((rounds, 7))
    for number in range(rounds):
        came[number, DropOut(Full(), share).cohort(DATA, 0, number)] = 1
    assert np.abs(came.mean(0) - (1 - share)).max() < 4.5 * (share * (1 - share) / rounds) ** 0.5
    apart = np.corrcoef(came.T)[~np.eye(7, dtype=bool)]
    assert np.abs(apart).max() < 4.5 / rounds**0.5
    assert DropOut(Full(), 0.0).cohort(DATA, 0, 1) == list(range(7))
    assert min(len(DropOut(Full(), 0.99).cohort(DATA, 0, number)) for number in range(50)) == 1
    drawn = [Uniform(0.5).cohort(DATA, 0, number) for number in range(50)]
    left = [DropOut(Uniform(0.5), 0.5).cohort(DATA, 0, number) for number in range(50)]
    assert all({*some} <= {*asked} for some, asked in zip(left, drawn, strict=True))
    with pytest.raises(PluresError, match=r"drop-outs: 1.0; give a share from 0 to below 1"):
        DropOut(Full(), 1.0)


def test_a_client_that_dropped_out_keeps_its_state_and_local_training_does_not_wait():
    spec = RunSpec(data="heart", drop_out=0.5, rounds=2)
    assert spec.who().of(travels=False) == Full()
    run = Run(ragged(), mlp, ditto(), Training(rounds=1), participation=spec.who(), execution=LOOP)
    before = run.states([*range(7)])["personal"]
    before = {path: t.clone() for path, t in before.items()}
    record = run.step()
    after = run.states([*range(7)])["personal"]
    assert 0 < len(record.cohort) < 7
    for place, name in enumerate(run.federation.clients):
        kept = all(torch.equal(before[path][place], after[path][place]) for path in after)
        assert kept == (name not in record.cohort)


def test_poisson_clients_come_each_by_a_coin_of_its_own():
    rounds, rate = 3000, 0.3
    came = np.zeros((rounds, 7))
    for number in range(rounds):
        came[number, Poisson(rate).cohort(DATA, 0, number)] = 1
    assert np.abs(came.mean(0) - rate).max() < 4.5 * (rate * (1 - rate) / rounds) ** 0.5
    assert np.abs(np.corrcoef(came.T)[~np.eye(7, dtype=bool)]).max() < 4.5 / rounds**0.5
    nobody = (came.sum(1) == 0).mean()
    chance = (1 - rate) ** 7
    assert abs(nobody - chance) < 4.5 * (chance * (1 - chance) / rounds) ** 0.5
    assert Poisson(1.0).cohort(DATA, 0, 3) == [*range(7)]
    fewer = DATA.take([0, 3, 5])
    for number in range(50):
        whole = Poisson(rate).cohort(DATA, 0, number)
        assert [[0, 3, 5][i] for i in Poisson(rate).cohort(fewer, 0, number)] == [i for i in whole if i in (0, 3, 5)]


def test_a_truncated_poisson_cohort_is_a_uniform_part_of_the_whole_one():
    rounds, rate, most = 6000, 0.5, 3
    counts, cut = np.zeros(7), 0
    for number in range(rounds):
        whole, part = (Poisson(rate, limit).cohort(DATA, 0, number) for limit in (None, most))
        assert {*part} <= {*whole}
        assert len(part) == min(most, len(whole))
        if len(whole) > most:
            cut += 1
            counts[part] += 1
    each = most / 7
    assert np.abs(counts / cut - each).max() < 4.5 * (each * (1 - each) / cut) ** 0.5


def test_a_bad_rate_is_named():
    with pytest.raises(PluresError, match=r"participation rate 0.0: give a number in \(0, 1\]"):
        Poisson(0.0)
    with pytest.raises(PluresError, match="at_most=0: give at least 1 client, or None"):
        Poisson(0.5, 0)
    with pytest.raises(PluresError, match="at_most=3 is not used with participation='uniform'"):
        RunSpec(data="heart", participation="uniform", at_most=3)
    spec = RunSpec(data="heart", participation="poisson", fraction=0.3, at_most=5)
    assert spec.who() == Joint(Poisson(0.3, 5))


@pytest.mark.parametrize("made", [ditto, scaffold, ifca, fedopt, cfl], ids=lambda made: made.name)
def test_a_round_without_clients_counts_and_changes_nothing(made):
    rule, empty = Poisson(0.2), []
    run = Run(ragged(), mlp, made(), Training(rounds=6, steps=1), participation=rule, seed=1, execution=LOOP)
    while run.round < 6:
        before = snapshot(run)
        record = run.step()
        assert [run.federation.clients.index(name) for name in record.cohort] == rule.cohort(DATA, 1, run.round - 1)
        if not record.cohort:
            empty.append(run.round)
            assert np.isnan(record.loss)
            assert record.bytes_up == record.bytes_down == 0
            after = snapshot(run)
            assert all(torch.equal(t, after[k]) for k, t in before.items() if k != "round")
    assert empty
    assert len(empty) < 6


def test_with_a_fixed_denominator_a_round_without_clients_is_a_change_of_zero():
    """The server's momentum goes on: with beta 0.5, an empty round moves by half of the move before."""
    method = Method(combine=Combine("uniform", ServerOptimizer(SGD(1.0, momentum=0.5)), denominator=2.0))
    rule = Fixed([["c0", "c1"]])
    run = Run(ragged(), mlp, method, Training(rounds=2, steps=1), participation=rule, execution=LOOP)
    start = {k: t.clone() for k, t in run.server["model"].values.items()}
    run.step()
    middle = run.server["model"].values
    run.origin = replace(run.origin, participation=Poisson(1e-9))
    assert run.step().cohort == ()
    for k, t in run.server["model"].values.items():
        torch.testing.assert_close(t - middle[k], 0.5 * (middle[k] - start[k]), rtol=1e-4, atol=1e-7)


def test_drop_outs_of_a_poisson_cohort_are_a_poisson_cohort():
    """1 - (1 - 0.5 * 0.6)^7 of the rounds have a client: nobody is made to come."""
    rule, rounds = DropOut(Poisson(0.5), 0.4), 2000
    some = np.mean([bool(rule.cohort(DATA, 0, number)) for number in range(rounds)])
    assert abs(some - (1 - 0.7**7)) < 4.5 * (0.7**7 / rounds) ** 0.5
