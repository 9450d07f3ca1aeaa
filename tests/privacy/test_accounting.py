"""Epsilon of plans: the published numbers, what is refused, and noise for a wanted epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plures.entropy import Secret
from plures.errors import PluresError
from plures.method.shares.share import Cohort
from plures.privacy import Draws, Plan, Private, calibrated, epsilon, gaussian, roots, sensitivity, shared_out
from plures.privacy.correlated import nodes, tree_sensitivity

SIX = {
    "one release": (1, 1, 1, 1e-5, 4.7285, 4.3772),
    "silos, all, 100 rounds": (10, 1, 100, 1e-5, 4.7285, 4.3772),
    "1 % of clients, 1000 rounds": (1, 0.01, 1000, 1e-5, 2.1014, 1.8282),
    "10 of 100 expected, 200 rounds": (2, 0.1, 200, 1e-3, 2.6472, 2.3028),
    "256 of 60000, 60 epochs": (1.1, 256 / 60000, 14062, 1e-5, 2.5966, 2.3817),
    "1000 of a million expected": (0.6, 1e-3, 2000, 1e-6, 3.3133, 2.3549),
}


def nobody(rounds):
    raise AssertionError("cohorts are not needed")


def sample(clients, size):
    return Draws("sample", clients, float(size), nobody, size=size)


def coins(clients, rate, at_most=None):
    return Draws("poisson", clients, rate * clients, nobody, rate, at_most)


def schedule(cohorts, clients=4):
    sizes = [len(cohort) for cohort in cohorts]
    return Draws(
        "schedule", clients, sum(sizes) / len(sizes), lambda rounds: [cohorts[r % len(cohorts)] for r in range(rounds)]
    )


@pytest.mark.oracle("DP4")
@pytest.mark.parametrize("case", SIX)
def test_six_settings_by_both_accountants(case):
    noise, rate, rounds, delta, rdp, pld = SIX[case]
    assert epsilon(noise, rounds, delta, rate=rate, accountant="rdp") == pytest.approx(rdp, abs=6e-5)
    if rate != 1e-3:  # 2.3549, in three seconds
        assert epsilon(noise, rounds, delta, rate=rate) == pytest.approx(pld, abs=6e-5)


@pytest.mark.oracle("DP5")
def test_fixed_cohorts_poisson_cohorts_and_no_amplification():
    def spent(draws, noise=2.0, **options):
        return Plan(Private(noise=noise, delta=1e-3, **options), draws).epsilon(200)

    honest = {"neighbours": "replace_one", "accountant": "rdp"}
    assert spent(sample(100, 10), **honest) == pytest.approx(16.1093, abs=6e-5)
    assert spent(sample(100, 10), noise=4.0, **honest) == pytest.approx(6.0251, abs=6e-5)
    assert spent(coins(100, 0.1)) == pytest.approx(2.3028, abs=6e-5)
    assert spent(coins(100, 0.1), accountant="rdp") == pytest.approx(2.6472, abs=6e-5)
    assert spent(coins(100, 0.1), neighbours="replace_one") == pytest.approx(4.8051, abs=6e-5)
    assert spent(schedule([[0]])) == pytest.approx(46.024, abs=6e-4)


@pytest.mark.oracle("DP5")
def test_a_schedule_costs_by_how_often_a_client_takes_part():
    """Clients 0 to 9 in turns, 200 rounds: 20 times each."""
    turns = schedule([[client] for client in range(10)], 10)
    private = Private(noise=2.0, delta=1e-3)
    assert Plan(private, turns).epsilon(200) == pytest.approx(8.7873, abs=6e-5)
    assert Plan(private, turns).epsilon(10) == pytest.approx(1.3523, abs=6e-5)
    assert Plan(private, turns).epsilon(0) == 0


@pytest.mark.oracle("DP4")
@pytest.mark.parametrize(
    ("wanted", "delta", "noise"),
    [(1, 1e-5, 3.730632), (0.5, 1e-5, 7.031827), (1, 1e-3, 2.574657), (8, 1e-5, 0.600229)],
)
def test_noise_of_one_release_for_a_wanted_epsilon(wanted, delta, noise):
    found = calibrated(wanted, lambda noise: gaussian(noise, delta))
    assert noise <= found * (1 + 1e-9)
    assert found == pytest.approx(noise, rel=1.1e-3)


@pytest.mark.oracle("DP4")
@pytest.mark.parametrize(("claimed", "true"), [(5, 4.5401), (8, 7.9144), (9, 9.1315), (10, 10.3939), (20, 25.4426)])
def test_the_classical_formula_is_not_private_beyond_8(claimed, true):
    assert gaussian(math.sqrt(2 * math.log(1.25e5)) / claimed, 1e-5) == pytest.approx(true, abs=6e-5)


def test_noise_for_rounds_spends_what_is_asked_and_hardly_less():
    plan = Plan(Private(delta=1e-3, accountant="rdp"), coins(100, 0.1))
    noise = plan.noise_for(2.6472, 200)
    assert noise == pytest.approx(2.0, rel=2e-3)
    assert 2.63 < plan.epsilon(200, noise) <= 2.6472


@pytest.mark.oracle("DP7")
def test_correlated_noise_is_the_square_root_of_prefix_sums():
    column = roots(4)
    np.testing.assert_allclose(column, [1, 1 / 2, 3 / 8, 5 / 16])
    square = np.array([[column[r - c] if r >= c else 0.0 for c in range(4)] for r in range(4)])
    np.testing.assert_allclose(square @ square, np.tril(np.ones((4, 4))))
    inverse = roots(4, -0.5)
    assert sensitivity([(0,)], 4, column) == pytest.approx(1.219951, abs=1e-6)
    spread = [1.219951 * np.linalg.norm(column[: t + 1]) for t in range(4)]
    np.testing.assert_allclose(spread, [1.219951, 1.363947, 1.438625, 1.488281], atol=2e-6)
    assert np.mean(np.square(spread)) == pytest.approx(1.908314, abs=2e-6)
    back = np.array([[inverse[r - c] if r >= c else 0.0 for c in range(4)] for r in range(4)])
    np.testing.assert_allclose(np.tril(np.ones((4, 4))) @ back, square, atol=1e-12)


def test_correlated_noise_is_accounted_as_one_release():
    plan = Plan(Private(noise=2.0, correlated=True), schedule([[0], [1], [2], [3]]))
    assert plan.epsilon(4) == pytest.approx(gaussian(2.0 / 1.219951, 1e-5), rel=1e-5)
    again = sensitivity([(0, 4)], 8, roots(8))
    assert plan.epsilon(8) == pytest.approx(gaussian(2.0 / again, 1e-5), rel=1e-9)


@pytest.mark.oracle("DP6")
@pytest.mark.parametrize(
    ("noise", "votes", "left"), [(1, 5, 1.0050378153), (1, 50, 1.0000500038), (0.5, 5, 0.5006261743)]
)
def test_votes_on_the_bound_cost_budget(noise, votes, left):
    assert shared_out(noise, votes) == pytest.approx(left, abs=1e-10)


def test_what_does_not_fit_is_refused():
    with pytest.raises(PluresError, match=r"2 of 4 clients, without replacement, are not what accounting .*poisson"):
        Plan(Private(), sample(4, 2))
    with pytest.raises(PluresError, match=r"at_most.* 'pld' for neighbours 'add_or_remove' alone"):
        Plan(Private(accountant="rdp"), coins(10, 0.5, 6))
    with pytest.raises(PluresError, match="Poisson cohorts are known to the accountant 'rdp'"):
        Plan(Private(accountant="rdp", neighbours="replace_one"), coins(10, 0.5))
    with pytest.raises(PluresError, match="correlated noise needs cohorts whose clients take part a known number"):
        Plan(Private(correlated=True), coins(10, 0.5))
    with pytest.raises(PluresError, match=r"votes=0.5 .* more than noise=2 allows: give more than 1"):
        shared_out(2.0, 0.5)
    with pytest.raises(PluresError, match="no noise up to"):
        calibrated(1e-9, lambda noise: 1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip": 0}, "clip=0"),
        ({"noise": -1}, "noise=-1"),
        ({"delta": 0}, "delta=0"),
        ({"clip": math.inf}, "clip=inf bounds nothing"),
        ({"votes": 1.0}, "votes=1 is not used without quantile"),
        ({"quantile": 1.5}, "quantile=1.5"),
        ({"quantile": 0.5, "quantile_lr": 0}, "quantile_lr=0"),
        ({"quantile": 0.5, "correlated": True}, "leave out quantile"),
        ({"quantile": 0.5, "trust": "nobody"}, "leave out quantile"),
        ({"correlated": True, "trust": "nobody"}, "leave out trust='nobody'"),
    ],
)
def test_a_bad_option_is_named(given, said):
    with pytest.raises(PluresError, match=said):
        Private(**given)


@pytest.mark.oracle("DP8")
def test_noise_of_a_tree_has_the_variance_of_its_nodes():
    """After t rounds the sums have the noise of as many nodes as t has ones in binary digits."""
    stage = Private(clip=2.0, noise=3.0, correlated=True, matrix="tree")
    so_far, found = torch.zeros(40_000, dtype=torch.float64), []
    for round in range(16):
        secret = Secret(bytes(32)).of
        cohort = Cohort(round, torch.tensor([0]), None, torch.tensor([True]), torch.rand, hidden=secret)
        change = {"model/w": torch.zeros(1, 40_000, dtype=torch.float64)}
        so_far = so_far + stage.release(change, {"model/w": torch.ones(1, 1)}, cohort)["model/w"][0]
        found.append(float(so_far.var()) / 36)
    assert found == pytest.approx([(t + 1).bit_count() for t in range(16)], rel=0.05)


@pytest.mark.oracle("DP8")
def test_a_tree_is_accounted_by_its_nodes():
    """A client that comes once is in 11 nodes of 1,024 rounds; who comes four times in 1, 2, 1 and 4 of four."""
    assert len(nodes(1024)) == 1024
    plan = Plan(Private(noise=2.0, correlated=True, matrix="tree", accountant="rdp"), schedule([[0], *[[1]] * 1023]))
    assert tree_sensitivity([(0,)], 1024) == pytest.approx(math.sqrt(11))
    once = Plan(plan.stage, schedule([[i] for i in range(1024)]))
    assert once.epsilon(1024) == pytest.approx(8.5519, abs=1e-3)
    every = Plan(Private(noise=2.0, correlated=True, matrix="tree"), schedule([[0]] * 4))
    assert every.epsilon(4) == pytest.approx(gaussian(2 / math.sqrt(1 + 4 + 1 + 16), 1e-5))
    spans = np.array([[first - 1 <= r < last for r in range(16)] for first, last in nodes(16)], dtype=float)
    pattern = np.zeros(16)
    pattern[[1, 6, 7, 12]] = 1
    assert tree_sensitivity([(1, 6, 7, 12)], 16) == pytest.approx(np.linalg.norm(spans @ pattern))
    assert "noise of a binary tree over rounds" in every.spent(4).plan
