"""Selection of clients by what is known about them: Oort's utility and power-of-choice, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.methods import fedavg
from plures.run import BySize, Clocked, Full, Oort, PowerOfChoice, Uniform
from plures.run.checkpoint import restore, snapshot
from problems import CURVATURES, OPTIMA, SIZES, begun, close, quadratic

LOSSES = [a / 2 * b**2 for a, b in zip(CURVATURES, OPTIMA, strict=True)]
"""0.5, 0.25 and 18: the clients' losses with the weight 0."""


@pytest.mark.oracle("SF7")
def test_power_of_choice_takes_the_highest_losses():
    run = begun(fedavg(), 1, participation=Clocked(Uniform(0.3), select=PowerOfChoice(3)))
    assert run.clients.held(run, [0, 1, 2]).tolist() == close(LOSSES)
    assert run.step().cohort == ("c",)
    two = begun(fedavg(), 1, participation=Clocked(Uniform(0.7), select=PowerOfChoice(3)))
    assert two.step().cohort == ("a", "c")


@pytest.mark.parametrize("rule", [Uniform(0.3), BySize(0.3)])
@pytest.mark.oracle("SF7")
def test_with_as_many_candidates_as_a_round_needs_it_is_the_rule_bit_for_bit(rule):
    plain = begun(fedavg(), 12, participation=rule)
    chosen = begun(fedavg(), 12, participation=Clocked(rule, select=PowerOfChoice(1)))
    assert [record.cohort for record in plain.rounds()] == [record.cohort for record in chosen.rounds()]
    assert plain.server["model"].values["model/weight"].equal(chosen.server["model"].values["model/weight"])


@pytest.mark.oracle("SF6")
def test_oort_learns_the_statistical_utility_of_those_that_took_part():
    run = begun(fedavg(), 1, participation=Clocked(Uniform(0.7), select=Oort()))
    cohort = [run.setting.index(name) for name in run.step().cohort]
    useful = run.pace["selection:useful"]
    assert useful[cohort].tolist() == close([SIZES[i] * LOSSES[i] for i in cohort]), "every example has the same loss"
    assert int(useful.isnan().sum()) == 1
    assert float(run.pace["selection:gained"].sum()) == close(sum(SIZES[i] * LOSSES[i] for i in cohort))


def test_utility_is_of_the_root_mean_square_of_losses():
    data = quadratic()
    data.targets[:5] = 0  # half of the examples of a have the loss 0 then, the others 0.5
    run = begun(fedavg(), 1, federation=data)
    assert run.clients.held(run, [0], squared=True).tolist() == close([(0.5**2 / 2) ** 0.5])


@pytest.mark.oracle("SF6")
def test_utility_by_hand():
    """Equation 1 with the uncertainty of algorithm 1, line 10: (u + sqrt(0.1 ln R / L)) (T / t) ** alpha."""
    memory = {"useful": torch.tensor([4.0, 4.0, torch.nan]).double(), "last": torch.tensor([2, 5, 0])}
    found = Oort(penalty=2.0).utilities(memory, 9, np.array([10.0, 40.0, 5.0]), 20.0)
    assert found[0] == close(4 + math.sqrt(0.1 * math.log(10) / 2))
    assert found[1] == close((4 + math.sqrt(0.1 * math.log(10) / 5)) / 4)
    assert math.isnan(found[2])


def test_high_utilities_are_cut_to_the_95th_percentile():
    memory = {"useful": torch.arange(21.0).double(), "last": torch.ones(21, dtype=torch.int64)}
    found = Oort().utilities(memory, 0, np.zeros(21), 0.0)
    assert found.tolist() == close([*range(20), 19.0])


def test_oort_explores_first_and_then_takes_the_useful():
    rule = Clocked(Uniform(0.3), select=Oort(exploration=1.0, decay=0.0, least=0.0))
    run = begun(fedavg(), 4, participation=rule, lr=0.0)
    records = list(run.rounds())
    assert len({records[0].cohort, *()}) == 1
    assert [record.cohort for record in records[1:]] == [records[0].cohort] * 3, "it is the only one that is known"
    all_first = begun(fedavg(), 4, participation=Clocked(Uniform(0.3), select=Oort(exploration=1, decay=1)), lr=0.0)
    seen = [record.cohort[0] for record in all_first.rounds()]
    assert sorted(seen[:3]) == ["a", "b", "c"]
    assert len(seen) == 4


def test_the_preferred_duration_rises_when_rounds_gain_less():
    rule, turn = Oort(window=2, pace=0.25), type("Turn", (), {"clients": [0]})()
    memory = rule.start(begun(fedavg(), 1).setting)
    for gain in (9.0, 9.0, 1.0, 1.0):
        memory = rule.learned(memory, turn, torch.tensor([gain]))
    seconds = np.array([0.0, 10.0, 20.0])
    assert rule.preferred(memory, seconds) == close(10.0)
    assert rule.preferred(rule.start(begun(fedavg(), 1).setting), seconds) == close(5.0)


def test_a_resumed_run_selects_the_same():
    rule = Clocked(Uniform(0.7), select=Oort())
    whole, again = begun(fedavg(), 8, participation=rule), begun(fedavg(), 8, participation=rule)
    for _ in range(4):
        whole.step()
    restore(again, snapshot(whole))
    assert [r.cohort for r in whole.rounds()] == [r.cohort for r in again.rounds()]
    assert whole.pace["selection:useful"].equal(again.pace["selection:useful"])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: PowerOfChoice(0), "at least 1"),
        (lambda: Oort(cutoff=2.0), "from 0 to 1"),
        (lambda: Clocked(Full(), select=Oort()), "uniform"),
    ],
)
def test_what_cannot_work_is_refused(make, why):
    with pytest.raises(PluresError, match=why):
        make()
