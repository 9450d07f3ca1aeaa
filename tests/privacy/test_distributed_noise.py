"""Discrete noise that clients add before a secure sum: its distribution, what it is worth, and what is refused."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from plures.codecs import Clip, SecureSum
from plures.codecs.discrete import discrete_gaussian
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.method import Assign, Combine, Method, Shared
from plures.privacy import Private, gaussian
from plures.privacy.distributed import divergence, worth
from plures.run import Poisson, Run, Training
from problems import begun
from resting import as_it_is
from trajectories import LOOP, everything_of, ragged
from trajectories import run as finished

STAGE = Private(clip=0.5, noise=2.0, trust="sum", accountant="rdp")


@pytest.mark.parametrize("deviation", [0.4, 1.5, 7.0])
def test_discrete_gaussians_have_the_stated_probabilities(deviation):
    count, reach = 100_000, range(-4, 5)
    found = discrete_gaussian(deviation, count, os.urandom)
    mass = {k: math.exp(-(k**2) / (2 * deviation**2)) for k in range(-200, 201)}
    whole = sum(mass.values())
    for k in reach:
        share = mass[k] / whole
        near = 4.5 * math.sqrt(share * (1 - share) / count) + 1e-12
        assert float((found == k).double().mean()) == pytest.approx(share, abs=near), k
    assert found.dtype == torch.int64
    assert len(found) == count


def test_large_discrete_gaussians_have_the_stated_deviation():
    found = discrete_gaussian(1e7, 100_000, os.urandom).double()
    assert float(found.std()) == pytest.approx(1e7, rel=4 / math.sqrt(200_000))
    assert abs(float(found.mean())) < 4 * 1e7 / math.sqrt(100_000)
    with pytest.raises(PluresError, match="deviation=0: give a positive number"):
        discrete_gaussian(0, 1, os.urandom)


@pytest.mark.parametrize(
    ("given", "found"), [((10, 4, 100, 20), 1.0), ((0.5, 4, 1, 1), 1.31674), ((1, 10, 100, 1), 0.321663)]
)
def test_what_a_sum_of_discrete_gaussians_is_worth_by_hand(given, found):
    """tau = 10 (e^-2.467 + e^-3.290 + e^-3.701) = 1.4676 for the second: 1 + 1.4676 is more than (1 + .7338)^.5."""
    assert divergence(*given) == pytest.approx(found, rel=1e-5)


def test_rounding_to_whole_numbers_costs_a_little():
    """bound 1, 100 clients, a million numbers: clip / (step n) = 10,737,418 and sqrt(d) / 2 = 500."""
    found = worth(SecureSum(bound=1.0), 1.0, 2.0, 100, 1_000_000)
    assert found == pytest.approx(2 / (1 + 500 / (2**30 / 100)), rel=1e-12)
    twice = worth(SecureSum(bound=1.0), 1.0, 2.0, 100, 1_000_000, replaced=True)
    assert twice == pytest.approx(found / 2, rel=1e-12)


def moved(wire, rounds=5):
    """What 1,000 weights move in each round while four clients stand still."""
    still = Method(layout={"model": Shared()}, schedule=(Assign(("model",), as_it_is),), wire=wire)
    federation = ragged((5, 5, 5, 5), features=(99,), classes=10)
    done = Run(federation, lambda: torch.nn.Linear(99, 10), still, Training(rounds), execution=LOOP)
    before, found = done.server["model"].values, []
    for _ in done.rounds():
        now = done.server["model"].values
        found.append(torch.cat([(now[k] - before[k]).flatten() for k in sorted(now)]))
        before = now
    return torch.stack(found), done


def test_the_sum_has_the_noise_of_all_who_came_and_the_plan_counts_that_of_the_fewest():
    """Three of four must come, so each adds 2 * 0.5 / sqrt(3); the mean of four has sqrt(4 / 3) * 1 / 4."""
    noise, done = moved((STAGE, SecureSum()))
    wanted = math.sqrt(4 / 3) / 4
    assert float(noise.std()) == pytest.approx(wanted, abs=4 * wanted / math.sqrt(2 * noise.numel()))
    assert abs(float(noise.mean())) < 4 * wanted / math.sqrt(noise.numel())
    apart = torch.corrcoef(noise)[~torch.eye(5, dtype=torch.bool)]
    assert float(apart.abs().max()) < 4.5 / math.sqrt(1000)
    spent = done.spent()
    assert spent is not None
    exact = gaussian(2 / math.sqrt(5), 1e-5, "rdp")
    assert exact <= spent.epsilon == pytest.approx(exact, rel=1e-4)
    assert spent.trust == "sum"
    assert "the server is trusted with sums alone" in spent.plan


def test_a_hundred_rounds_of_all_silos_spend_what_one_release_does():
    """Noise 10, everybody in 100 rounds, delta 1e-5: Rényi divergences give 4.7285; rounding adds little."""
    method = find_method("fedavg+dp(clip=1,noise=10,trust=sum,accountant=rdp)+secure_sum(bound=64)")()
    assert begun(method, 100).origin.plan.spent(100).epsilon == pytest.approx(4.7285, abs=2e-4)


def test_without_noise_it_is_the_clipped_secure_sum_bit_for_bit():
    silent, ditto = replace(STAGE, noise=0.0, losses=True), find_method("ditto")()
    one = finished(replace(ditto, wire=(silent, SecureSum())), LOOP)
    plain = Combine("uniform", denominator=7.0)
    two = finished(replace(ditto, combine=plain, wire=(Clip(0.5), SecureSum())), LOOP)
    for name, value in everything_of(one).items():
        assert torch.equal(value, everything_of(two)[name]), name


@pytest.mark.parametrize(
    ("wire", "sentence"),
    [
        ((STAGE,), "put it right before one"),
        ((SecureSum(),), None),
        ((replace(STAGE, accountant="pld"), SecureSum()), "say accountant='rdp'"),
        ((replace(STAGE, noise=20.0), SecureSum()), r"needs secure_sum\(bound=40\) or more"),
        ((replace(STAGE, clip=9.0, noise=0.1), SecureSum()), r"needs secure_sum\(bound=9\) or more"),
    ],
)
def test_what_does_not_fit_is_refused(wire, sentence):
    if sentence is None:
        begun(replace(find_method("fedavg")(), wire=wire), 1)
        return
    with pytest.raises(PluresError, match=sentence):
        begun(replace(find_method("fedavg")(), wire=wire), 1)
    with pytest.raises(PluresError, match="leave out trust='sum'"):
        replace(STAGE, correlated=True)
    with pytest.raises(PluresError, match="no quantile of norms can be told"):
        replace(STAGE, quantile=0.5)


def test_nothing_is_gained_by_chance_against_a_server_that_asks():
    """Poisson cohorts hide nobody from whoever draws them: the rounds in which a client took part count in full."""
    method = find_method("fedavg+dp(clip=1,noise=10,trust=sum,accountant=rdp)+secure_sum(bound=64)")()
    run = begun(method, 20, participation=Poisson(0.7))
    most = max(np.bincount([client for round in range(20) for client in run.cohort(round)]))
    assert run.origin.plan.spent(20).epsilon == pytest.approx(gaussian(10 / math.sqrt(most), 1e-5, "rdp"), rel=1e-3)
