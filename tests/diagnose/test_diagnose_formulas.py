"""Each measure by hand on tiny inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from worlds import world

from plures.diagnose.chance import between, positive, sums
from plures.diagnose.clusters import adjusted_rand, design, explained, outliers, silhouette
from plures.diagnose.features import features, median_distance, mmd
from plures.diagnose.gradients import gradients
from plures.diagnose.labels import deal, likelihood_ratio, total_variation
from plures.diagnose.probe import Rows, fit, losses
from plures.diagnose.quality import noise_shares
from plures.diagnose.sample import components, sample
from plures.diagnose.sizes import gini
from plures.models import build, logistic

RNG = np.random.default_rng


def test_total_variation_by_hand():
    """Pooled (2/3, 1/3); client 0 has (3/4, 1/4), client 1 has (1/2, 1/2); client 2 has nothing."""
    found = total_variation(np.array([[6, 2], [2, 2], [0, 0]]))
    assert found[:2] == pytest.approx([1 / 12, 1 / 6])
    assert math.isnan(found[2])
    assert total_variation(np.array([[5, 0], [0, 5]])) == pytest.approx([0.5, 0.5])


def test_likelihood_ratio_by_hand():
    """Two clients with one label each: G = 2 n log 2."""
    assert likelihood_ratio(np.array([[5, 0], [0, 5]])) == pytest.approx(20 * math.log(2))
    assert likelihood_ratio(np.array([[4, 2], [2, 1]])) == pytest.approx(0)


def test_dealing_keeps_sizes_and_labels():
    table = np.array([[7, 0, 3], [1, 4, 0], [0, 0, 0]])
    dealt = deal(table, RNG(0))
    assert dealt.sum(0).tolist() == table.sum(0).tolist()
    assert dealt.sum(1).tolist() == table.sum(1).tolist()


@pytest.mark.parametrize(
    ("sizes", "value"), [([5, 5, 5], 0), ([0, 0, 0, 8], 3 / 4), ([1, 3], 1 / 4), ([1, 2, 3], 2 / 9)]
)
def test_gini_by_hand(sizes, value):
    assert gini(np.array(sizes, dtype=float)) == pytest.approx(value)


def test_mmd_of_two_point_sets_by_hand():
    """Sets {0, 2} and {0, 4} on a line, bandwidth 1: the mean of the kernel over all pairs."""
    k = [math.exp(-(d**2) / 2) for d in range(5)]
    by_hand = (2 + 2 * k[2]) / 4 + (2 + 2 * k[4]) / 4 - 2 * (1 + k[4] + k[2] + k[2]) / 4
    assert mmd(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]]), 1.0) == pytest.approx(by_hand)
    assert mmd(np.array([[1.0]]), np.array([[1.0]]), 1.0) == 0


def test_fourier_features_give_the_kernel():
    """The squared distance of mean features is the MMD with the median bandwidth, within the error of sampling."""
    points = RNG(0).normal(size=(60, 3))
    points[30:, 0] += 2
    phi = features(points, 0, frequencies=20_000)
    by_features = ((phi[:30].mean(0) - phi[30:].mean(0)) ** 2).sum()
    assert by_features == pytest.approx(mmd(points[:30], points[30:], median_distance(points)), abs=0.01)
    assert median_distance(np.array([[0.0], [1.0], [5.0]])) == 4


def test_share_between_clients_by_hand():
    """Values 0, 0, 2, 2 of two clients: all of the variance; mixed: none. A stratum of its own explains it away."""
    values, owner = np.array([[0.0], [0.0], [2.0], [2.0]]), np.array([0, 0, 1, 1])
    found = between(values, owner, 2, RNG(0))
    assert found.raw == pytest.approx(1)
    assert found.chance == pytest.approx(1 / 3, abs=0.12)
    assert found.means.flatten().tolist() == [-1, 1]
    assert between(np.array([[0.0], [2.0], [0.0], [2.0]]), owner, 2, RNG(0)).raw == pytest.approx(0)
    assert between(values, owner, 2, RNG(0), strata=np.array([0, 0, 1, 1])).raw == 0
    assert sums(values, owner, 3).flatten().tolist() == [0, 4, 0]


def test_a_client_is_compared_with_its_own_mixture_of_labels():
    """Inputs that labels determine: clients with other label frequencies do not differ within labels."""
    rng = RNG(1)
    labels = np.r_[rng.random(300) < 0.9, rng.random(300) < 0.1].astype(np.int64)
    values = labels[:, None] * 3.0 + rng.normal(size=(600, 1))
    owner = np.repeat([0, 1], 300)
    assert between(values, owner, 2, RNG(0)).share > 0.3
    within = between(values, owner, 2, RNG(0), labels)
    assert within.share < 0.01
    assert within.p > 0.01


def test_permutation_p_value_is_uniform_without_a_difference():
    """The test holds its level: of 200 data sets at most 17 have p <= 0.05 (10 expected, standard deviation 3.1)."""
    rng = RNG(0)
    found = [between(rng.normal(size=(40, 2)), np.arange(40) % 4, 4, rng, permutations=99).p for _ in range(200)]
    assert sum(p <= 0.05 for p in found) <= 17
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_sign_flips_by_hand():
    """Five equal gains: only one of 32 sign patterns is as large, so p is near 1 / 32; losses give 1."""
    assert positive(np.ones(5), RNG(0), 4000) == pytest.approx(1 / 32, abs=0.01)
    assert positive(-np.ones(5), RNG(0)) == 1


def test_silhouette_by_hand():
    """Points 0, 1 | 10 | 11, 12 with the lone point scoring zero."""
    places = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    distance = np.abs(places[:, None] - places)
    by_hand = np.mean([(10 - 1) / 10, (9 - 1) / 9, 0, (1 - 1) / 1, (2 - 1) / 2])
    assert silhouette(distance, np.array([0, 0, 1, 2, 2])) == pytest.approx(by_hand)
    assert silhouette(distance, np.zeros(5, dtype=int)) == 0


def test_adjusted_rand_by_hand():
    """Hubert, Arabie: pairs together in both 1, in one 2 and 3 of 10, so (1 - 0.8) / (3 - 0.8)."""
    assert adjusted_rand(np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1])) == pytest.approx(
        (1 - 2 * 4 / 10) / ((2 + 4) / 2 - 2 * 4 / 10)
    )
    assert adjusted_rand(np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0])) == 1


def test_metadata_explain_what_they_determine():
    names, groups = design(("x", "x", "y", "y"))
    points = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    share, _ = explained(points @ points.T, names, RNG(0))
    assert groups == 2
    assert share == pytest.approx(1)
    assert design(("a", "a", "a")) is None
    assert design(("a", "b", "c", "d")) is None
    assert design((1, 2.5, 3, 4))[1] == 0


def test_one_far_client_is_an_outlier():
    units = np.vstack([np.eye(3)[0] + 0.05 * RNG(0).normal(size=(9, 3)), -np.eye(3)[:1]])
    assert outliers(units) == [9]
    assert outliers(units[:9]) == []


def test_noise_share_by_hand():
    """A straight line has no second difference; white noise is all noise, in series and in pictures."""
    rng, owner = RNG(0), np.zeros(50, dtype=int)
    line = np.tile(np.arange(64.0), (50, 1, 1))
    assert noise_shares(line, owner, 1).max() == 0
    noisy = line + 5 * rng.normal(size=line.shape)
    assert noise_shares(noisy, owner, 1).mean() == pytest.approx(25 / noisy.var(), rel=0.1)
    plane = np.add.outer(np.arange(20.0), np.arange(20.0))
    pictures = plane + 2 * rng.normal(size=(50, 1, 20, 20))
    assert noise_shares(pictures, owner, 1).mean() == pytest.approx(4 / pictures.var(), rel=0.1)


def test_probe_solves_ridge_regression():
    """Shared weights of a squared loss are the closed form; a client's own are those of its rows alone."""
    rng = RNG(0)
    x, y, owner = rng.normal(size=(30, 3)), rng.normal(size=(30, 2)), np.arange(30) % 2
    zero = np.zeros_like(y)
    shared = fit(Rows(owner, y, x, x[:, :0], zero), 2, (2.0, 1.0), classification=False)
    assert shared.common.numpy() == pytest.approx(np.linalg.solve(x.T @ x + 2 * np.eye(3), x.T @ y), abs=1e-3)
    own = fit(Rows(owner, y, x[:, :0], x, zero), 2, (1.0, 2.0), classification=False)
    for client in (0, 1):
        a, b = x[owner == client], y[owner == client]
        by_hand = np.linalg.solve(a.T @ a + np.diag([0.02, 2, 2]), a.T @ b)
        assert own.own[client].numpy() == pytest.approx(by_hand, abs=1e-3)
    rows = Rows(owner, y, x, x, zero)
    assert shared.outputs(Rows(owner, y, x, x[:, :0], zero)) == pytest.approx(rows.common @ shared.common.numpy())


def test_losses_by_hand():
    target = np.array([[1.0, 0.0]])
    assert losses(np.array([[0.0, 0.0]]), target, True) == pytest.approx([math.log(2)])
    assert losses(np.array([[0.0, 2.0]]), target, False) == pytest.approx([2.5])


def test_components_keep_distances_of_low_rank_data():
    """Points in a plane of 50 dimensions: two components, distances kept up to one factor."""
    flat = RNG(0).normal(size=(40, 2)) @ RNG(1).normal(size=(2, 50))
    found = components(flat, 0)
    assert found.shape == (40, 2)
    ratio = np.linalg.norm(found[:1] - found[1:], axis=1) / np.linalg.norm(flat[:1] - flat[1:], axis=1)
    assert ratio == pytest.approx(np.full(39, ratio[0]))


def test_gradients_are_those_of_the_initial_model():
    """For a linear model the gradient is (p - y) x, by hand; only train rows count."""
    federation = world(3, clients=3)
    made = logistic(federation.features, 2)
    found = gradients(sample(federation, 0), made, seed=0)
    weight, bias = build(made, 0).state_dict().values()
    rows = federation.splits["train"][1]
    x, y = federation.inputs[rows], torch.nn.functional.one_hot(federation.targets[rows], 2)
    errors = (x @ weight.T + bias).softmax(1) - y
    by_hand = torch.cat([(errors.T @ x / len(rows)).flatten(), errors.mean(0)])
    assert found.model == "Sequential"
    assert found.whole[1] == pytest.approx(by_hand.detach().numpy(), abs=1e-6)


def test_matched_gradients_are_blind_to_label_frequencies():
    """Within labels: a client's gradient less each label's mean gradient over all clients, by its own frequencies."""
    federation = world(4, clients=3, prior=lambda client, rng: 0.2 + 0.3 * client)
    some, made = sample(federation, 0), logistic(federation.features, 2)
    found = gradients(some, made, seed=0)
    weight, bias = build(made, 0).state_dict().values()
    x = federation.inputs[some.rows]
    errors = (x @ weight.T + bias).softmax(1) - torch.from_numpy(some.target).float()
    each = torch.cat([(errors[:, :, None] * x[:, None]).flatten(1), errors], 1).detach().numpy()
    means = np.stack([each[some.strata == label].mean(0) for label in (0, 1)])
    for client in range(3):
        mine = some.owner == client
        assert found.matched[client] == pytest.approx((each[mine] - means[some.strata[mine]]).mean(0), abs=1e-6)
