"""Clusters isolate: once attackers have a cluster of their own, honest models do not depend on them by a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import plures
from plures.evaluate.watched import watched
from plures.federation import from_arrays
from plures.method import SGD, Combine, Method, bipartition
from plures.methods import cfl, gradient_clusters, ifca
from plures.report.against import flagged
from plures.robust import MultiKrum
from plures.run import Fixed, Full, Participation, Run, Training
from plures.run.checkpoint import restore, snapshot
from plures.threat import Gaussian, LabelFlip, Replacement, SignFlip, Threat
from problems import EXACT, quadratic, scalar

HOSTILE = ("e", "f")
HONEST = [0, 1, 2, 3]


def patients() -> Any:
    """Six clients of 30 examples, with three classes that are where the input points."""
    random = torch.Generator().manual_seed(5)
    y = torch.arange(180) % 3
    x = 3 * nn.functional.one_hot(y, 3).float() + 0.5 * torch.randn(180, 3, generator=random)
    return from_arrays(x.numpy(), y.numpy(), ["abcdef"[i // 30] for i in range(180)], standardize=False)


def linear() -> nn.Module:
    return nn.Linear(3, 3)


SAME = quadratic(curvatures=(1.0,) * 6, optima=(1.0,) * 6, sizes=(20,) * 6)
"""Six clients with one optimum, 1: what attackers send, twice their change turned around, is all that differs."""
POISONED = Threat(HOSTILE, poison=LabelFlip())
CASES = {
    "cfl": (cfl(0.05, 0.1, warmup=1), SAME, scalar(), Threat(HOSTILE, SignFlip(2.0))),
    "gradient clusters": (gradient_clusters(2), patients(), linear, POISONED),
    "ifca": (ifca(clusters=2), patients(), linear, POISONED),
}
ROUNDS, ISOLATED = 6, 3
SEED = 3
"""With other starts, such as those of seed 0, all clients choose one model of IFCA, and nobody is isolated."""


def started(case: str, threat: Threat | None, who: Participation | None = None) -> Run:
    method, federation, model, _ = CASES[case]
    training = Training(rounds=ROUNDS, steps=2, batch_size=None, optimizer=SGD(0.1))
    return Run(
        federation, model, method, training, participation=who or Full(), seed=SEED, execution=EXACT, threat=threat
    )


def gone_on(run: Run, rounds: int) -> Run:
    for _ in range(rounds):
        run.step()
    return run


@pytest.mark.oracle("IS0")
def test_who_pulls_the_other_way_is_a_part_of_its_own() -> None:
    """Three changes to the right and two to the left, the largest cosine across is -.9750; the mean is in between."""
    changes = torch.tensor([(1, 0.1), (1, -0.1), (0.9, 0), (-1, 0.05), (-0.8, -0.1)], dtype=torch.float64)
    away, across = bipartition(changes)
    assert away.tolist() == [False, False, False, True, True]
    assert across == pytest.approx(-0.9750114730, abs=1e-10)
    assert changes[~away].mean(0).tolist() == pytest.approx([0.9666666667, 0], abs=1e-10)
    assert changes.mean(0).tolist() == pytest.approx([0.22, -0.01], abs=1e-10)


@pytest.mark.oracle("IS1")
@pytest.mark.parametrize("case", CASES)
def test_isolated_attackers_change_no_bit_of_honest_models(case: str) -> None:
    threat = CASES[case][3]
    run = gone_on(started(case, threat), ISOLATED)
    (clusters,) = run.membership.values()
    honest, hostile = clusters[HONEST].tolist(), clusters[4:].tolist()
    assert not set(honest) & set(hostile), "isolated by now"
    state = snapshot(run)
    gone_on(run, ROUNDS - ISOLATED)
    loud = Threat(HOSTILE, Replacement(1.5) if case == "ifca" else Gaussian(1e4), threat.poison)
    still = Threat(HOSTILE, Replacement(0.0), threat.poison)
    others = [started(case, loud), started(case, still), started(case, threat, Fixed([["a", "b", "c", "d"]]))]
    for other in others:
        restore(other, state)
        gone_on(other, ROUNDS - ISOLATED)
        for path, mine in run.states(HONEST)["model"].items():
            assert torch.equal(mine, other.states(HONEST)["model"][path])
    rest = [run.states([4])["model"], others[0].states([4])["model"]]
    assert any(not torch.equal(rest[0][path], rest[1][path]) for path in rest[0])


def test_attackers_of_ifca_choose_where_they_are() -> None:
    """Isolation by a client's own choice lasts as long as the attackers' model serves them: then they come back."""
    run = started("ifca", Threat(HOSTILE, Gaussian(1e4), LabelFlip(), start=ISOLATED + 1))
    gone_on(run, ISOLATED)
    (apart,) = run.membership.values()
    gone_on(run, ROUNDS - ISOLATED)
    (back,) = run.membership.values()
    assert apart.tolist() == [1, 1, 1, 1, 0, 0]
    assert len(set(back.tolist())) == 1


def test_cfl_without_isolation_is_carried_away() -> None:
    """FedAvg's mean of four changes and of two, twice as long and turned around, is no change at all.

    CFL notices after its second round; four rounds of two steps of 0.1 are left.
    """
    plain = plures.METHODS["fedavg"]()
    training = Training(rounds=ROUNDS, steps=2, batch_size=None, optimizer=SGD(0.1))
    stuck = Run(SAME, scalar(), plain, training, execution=EXACT, threat=CASES["cfl"][3])
    apart = started("cfl", CASES["cfl"][3])
    for run in (stuck, apart):
        gone_on(run, ROUNDS)
    assert float(stuck.states([0])["model"]["weight"]) == pytest.approx(0.0, abs=1e-12)
    assert float(apart.states([0])["model"]["weight"]) == pytest.approx(1 - 0.81**4, abs=1e-12)
    assert float(apart.states([4])["model"]["weight"]) < -1


def test_who_was_put_where_and_who_was_left_out_are_seen() -> None:
    """The only attacker ends alone; a combination that leaves two of six out counts each round it did."""
    alone = Threat(("f",), SignFlip(5.0))
    method = cfl(0.05, 0.1, warmup=1)
    training = Training(rounds=3, steps=2, batch_size=None, optimizer=SGD(0.1))
    run = gone_on(Run(SAME, scalar(), method, training, execution=EXACT, threat=alone), 3)
    seen = watched(run, alone)
    assert seen is not None
    (clusters,) = seen.clusters.values()
    assert {name for name, own in clusters.items() if own == clusters["f"]} == {"f"}
    assert (seen.left_out, flagged(seen)) == ({}, {"f"})
    chosen = plures.METHODS["fedavg"]() + Method(combine=Combine(reduce=MultiKrum(1, keep=4)))
    run = gone_on(Run(SAME, scalar(), chosen, training, execution=EXACT, threat=alone), 3)
    seen = watched(run, alone)
    assert seen is not None
    assert seen.left_out == {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 1.0}
    assert flagged(seen) == {"e", "f"}
