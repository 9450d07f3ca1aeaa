"""Participation: sizes, chances and determinism of the cohorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plures import RunSpec
from plures.errors import PluresError
from plures.method import Setting
from plures.methods import ditto, fedavg, local, scaffold
from plures.run import BySize, DropOut, Fixed, Full, Run, Training, Uniform
from trajectories import LOOP, SIZES, mlp, ragged

DATA = Setting.of(ragged())
RULES = [Full(), Uniform(0.4), BySize(0.4), Fixed([["c1", "c0"], ["c6"]]), DropOut(Uniform(0.7), 0.4)]


@pytest.mark.parametrize("rule", RULES)
def test_cohorts_are_sorted_distinct_and_a_function_of_seed_and_round(rule):
    for round in range(20):
        cohort = rule.cohort(DATA, 5, round)
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(range(len(SIZES)))
        assert cohort == rule.cohort(DATA, 5, round)


@pytest.mark.parametrize("rule", [Uniform(0.4), BySize(0.4)])
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
