"""Regularised and multi-task methods, fairness, and server steps: closed forms, rounds by hand, identities."""

from __future__ import annotations

import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from plures import PluresError, PluresWarning
from plures.method import (
    SGD,
    Cohort,
    Combine,
    Method,
    Mixed,
    Phase,
    ServerOptimizer,
    Setting,
    Shared,
    State,
    norm_statistics,
    squared_distance,
    task_loss,
)
from plures.methods import ditto, fedavg, local
from plures.methods.fedavgm import fedavgm
from plures.methods.feddyn import feddyn
from plures.methods.fedopt import fedopt
from plures.methods.fedu import fedu
from plures.methods.l2gd import geometric, l2gd
from plures.methods.mocha import covariance, mocha
from plures.methods.mrmtl import mrmtl
from plures.methods.qffl import qffl
from plures.methods.reptile import reptile
from plures.run import Fixed, Run, Uniform, onboard
from plures.run.checkpoint import restore, snapshot
from plures.run.cost import traffic
from problems import at_rest, close, personal, predictions, predictors, quadratic, run, shared, weight
from shifted import mlp, ragged

printed = lambda value: pytest.approx(value, abs=6e-10)  # noqa: E731
partial = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
MINI = {"steps": 4, "batch_size": 8, "model": mlp}
A, B = np.array([1.0, 2.0, 4.0]), np.array([-1.0, 0.5, 3.0])
MEAN = np.eye(3) - 1 / 3
JOINT = np.linalg.solve(np.diag(A) + MEAN, A * B)
"""The optimum of ``sum f_i(x_i) + 1/2 sum (x_i - mean)^2`` on Q3."""


def metadata(federation, **columns):
    return replace(federation, metadata={name: tuple(values) for name, values in columns.items()})


def newcomer():
    return quadratic((2.0,), (9.0,), (5,), names=("z",))


def same(left: dict, right: dict, tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for path in left:
        torch.testing.assert_close(left[path], right[path], atol=tolerance, rtol=0)


def alternating(eta: float, pull: float, steps: int = 1) -> np.ndarray:
    """Fixed point of gradient steps followed by ``x <- x - pull (x - mean)``."""
    stays = (1 - eta * A) ** steps
    mixing = np.eye(3) - pull * MEAN
    return np.linalg.solve(np.eye(3) - mixing @ np.diag(stays), mixing @ ((1 - stays) * B))


def placed(method: Method, models, **options) -> Run:
    """A run before its first round whose clients have the given scalars, kept by the server."""
    start = run(method, 0, **options)
    rows = torch.as_tensor(np.asarray(models), dtype=torch.float64).view(-1, 1, 1)
    start.server = {name: replace(kept, values={"model/weight": rows}) for name, kept in start.server.items()}
    return start


def advanced(start: Run, rounds: int) -> np.ndarray:
    """What the clients predict with after some more rounds."""
    for _ in range(rounds):
        start.step()
    return np.array(predictions(start))


# MR-MTL ---------------------------------------------------------------------------------------------------------


def test_the_joint_optimum_is_the_published_one():
    assert pytest.approx(JOINT, abs=6e-10) == [0.067796610, 0.711864407, 2.627118644]


@pytest.mark.oracle("PM7", "edge:mrmtl")
@pytest.mark.parametrize("steps", [1, 4])
def test_mrmtl_reaches_the_joint_optimum_for_any_number_of_steps(steps):
    done = run(mrmtl(1.0), 120, steps=steps, lr=0.3)
    assert predictions(done) == close(JOINT.tolist())
    assert weight(done) == close(JOINT.mean())


@pytest.mark.oracle("LG2")
def test_lg2_the_simultaneous_step_reaches_the_joint_optimum():
    """With one step a round, MR-MTL is ``x -= eta (grad f + lam (x - mean))`` for all clients at once."""
    x, done = np.zeros(3), [run(mrmtl(1.0), rounds, steps=1) for rounds in (1, 2, 3, 250)]
    for step in range(3):
        x = x - 0.1 * (A * (x - B) + (x - x.mean()))
        assert predictions(done[step]) == close(x.tolist())
    assert predictions(done[3]) == close(JOINT.tolist())


def test_mrmtl_by_hand_when_some_are_absent():
    """The mean is over the cohort; the others keep their models."""
    done = run(mrmtl(1.0), 2, participation=Fixed([["a", "b"], ["b", "c"]]), steps=1)
    w = (-0.1 + 0.1) / 2
    v = [-0.1, 0.1 - 0.1 * (2 * (0.1 - 0.5) + (0.1 - w)), 0.1 * (4 * 3.0 + w)]
    assert predictions(done) == close(v)
    assert weight(done) == close((v[1] + v[2]) / 2)


@degenerate
@partial
def test_mrmtl_without_pull_is_local_training(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    same(predictors(run(mrmtl(0.0), 5, **options)), predictors(run(local(), 5, **options)))


def test_an_unseen_client_of_mrmtl_starts_from_the_mean():
    done = run(mrmtl(1.0, visits=1), 3)
    w = v = weight(done)
    assert predictions(onboard(done, newcomer(), visits=0)) == [w]
    for _ in range(2):
        v -= 0.1 * (2.0 * (v - 9.0) + (v - w))
    assert predictions(onboard(done, newcomer())) == close([v])
    assert traffic(done.bound) == (8, 8)


# L2GD -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trials(monkeypatch):
    """Fixes the random numbers of steps and of averaging steps."""

    def fix(number: int) -> None:
        monkeypatch.setattr(importlib.import_module("plures.methods.l2gd"), "geometric", lambda u, chance: number)

    return fix


def mixing_of(method: Method, federation=None) -> torch.Tensor:
    """The matrix by which the server multiplies the models."""
    setting = Setting.of(federation or quadratic())
    everybody, nobody = torch.arange(len(setting)), torch.zeros(len(setting), dtype=torch.bool)
    cohort = Cohort(0, everybody, setting, nobody, lambda name, count: torch.full((count,), 0.3))
    share = method.layout["model"]
    assert isinstance(share, Mixed)
    assert share.matrix is not None
    return share.matrix(torch.zeros(len(setting), 2, dtype=torch.float64), cohort)


@pytest.mark.oracle("LG0")
@pytest.mark.parametrize("p", [0.2, 0.5, 0.7])
def test_lg0_the_two_steps_are_an_unbiased_gradient(p, trials):
    """Local step with probability 1 - p, averaging step with p: minus alpha times the gradient in the mean."""
    trials(1)
    alpha, lam, n = 0.06, 0.8, 3
    strength, lr = alpha * lam / (n * p), alpha / (n * (1 - p))
    start = run(l2gd(0.5), 1, lr=0.05)
    x = np.array(predictions(start))
    steps = []
    for method, rate in ((replace(l2gd(0.5), layout={"model": Mixed()}), lr), (l2gd(strength, p), 0.0)):
        after = run(method, 0, lr=rate)
        restore(after, snapshot(start))
        after.step()
        steps.append(np.array(predictions(after)) - x)
    slope = (A * (x - B) + lam * (x - x.mean())) / n
    assert np.ptp(x) > 0.1
    assert ((1 - p) * steps[0] + p * steps[1]).tolist() == pytest.approx((-alpha * slope).tolist(), abs=1e-14)


@pytest.mark.oracle("LG1")
@degenerate
@partial
def test_lg1_without_pull_it_is_local_training(cohort, trials):
    trials(4)
    options = {"federation": ragged(), "participation": cohort, **MINI}
    same(predictors(run(l2gd(0.0), 5, **options)), predictors(run(local(), 5, **options)), 1e-12)


@pytest.mark.oracle("LG1")
def test_lg1_the_strongest_pull_is_consensus():
    models = predictors(run(l2gd(1.0), 3, federation=ragged(), **MINI))
    for rows in models.values():
        torch.testing.assert_close(rows, rows.mean(0).expand_as(rows), atol=1e-15, rtol=0)


@pytest.mark.oracle("LG3")
def test_lg3_the_alternating_scheme_has_its_own_fixed_point(trials):
    """One gradient step, one averaging step: an O(lr) bias, so it is not the joint optimum."""
    trials(1)
    limit = alternating(0.02, 0.02)
    assert limit.tolist() == printed([0.0805432635, 0.7160390749, 2.6218446467])
    assert advanced(placed(l2gd(0.02, 0.5), limit, lr=0.02), 3).tolist() == pytest.approx(limit.tolist(), abs=1e-14)
    far = advanced(placed(l2gd(0.02, 0.5), limit + np.array([1.0, -1.0, 2.0]), lr=0.02), 120)
    assert np.abs(far - limit).max() < 0.2
    biases = [np.abs(alternating(eta, eta) - JOINT).max() for eta in (0.02, 0.01)]
    assert biases[0] / biases[1] == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_l2gd_exchanges_2p_1_minus_p_times_an_iteration(p):
    grid = (np.arange(20000) + 0.5) / 20000
    local_steps = np.array([geometric(u, p) for u in grid])
    averagings = np.array([geometric(u, 1 - p) for u in grid])
    for counts, chance in ((local_steps, p), (averagings, 1 - p)):
        expected = [chance * (1 - chance) ** (k - 1) for k in (1, 2, 3, 4)]
        assert [(counts == k).mean() for k in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-4)
    assert 2 / (local_steps.mean() + averagings.mean()) == pytest.approx(2 * p * (1 - p), rel=1e-3)
    assert traffic(run(l2gd(0.3, p), 0).bound) == (8, 8)


def test_l2gd_draws_one_number_of_steps_for_all_clients_of_a_round():
    """Each round equals the closed form for its number of steps and its number of averagings."""
    x, found = np.zeros(3), []
    for rounds in range(1, 6):
        after = np.array(predictions(run(l2gd(0.3, 0.5), rounds, lr=0.05)))
        fits = [
            (k, j)
            for k in range(1, 12)
            for j in range(1, 12)
            for y in [B + (1 - 0.05 * A) ** k * (x - B)]
            if np.allclose(y.mean() + 0.7**j * (y - y.mean()), after, atol=1e-9, rtol=0)
        ]
        assert len(fits) == 1
        found += fits
        x = after
    assert len(set(found)) > 1


def test_l2gd_wanders_around_the_joint_optimum():
    """lam = strength p / ((1 - p) lr) = 1: the mean over many rounds is near it."""
    start = placed(l2gd(0.02, 0.5), JOINT, lr=0.02)
    path = [advanced(start, 1) for _ in range(250)]
    assert np.ptp(path, axis=0).max() > 0.1
    assert np.abs(np.mean(path, axis=0) - JOINT).max() < 0.06


def test_l2gd_when_some_are_absent(trials):
    """The mean includes the last models of absent clients, who keep theirs."""
    trials(1)
    done = run(l2gd(0.4), 1, lr=0.1, participation=Fixed([["b", "c"]]))
    y = np.array([0.0, 0.1, 1.2])
    assert personal(done, "model") == close([0.0, *(0.6 * y + 0.4 * y.mean())[1:]])
    assert predictions(done)[1:] == personal(done, "model")[1:]


def test_an_unseen_client_of_l2gd_starts_from_the_mean_of_the_models():
    done = run(l2gd(0.3), 4)
    assert predictions(onboard(done, newcomer(), visits=0)) == close([np.mean(predictions(done))])
    assert predictions(onboard(done, newcomer(), visits=50)) == pytest.approx([9.0], abs=1e-4)


# FedU -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("FU0")
def test_fu0_the_complete_graph_mixes_as_l2gd(trials):
    trials(1)
    laplacian = 3 * np.eye(3) - np.ones((3, 3))
    both = mixing_of(l2gd(0.3)), mixing_of(fedu(0.3))
    torch.testing.assert_close(both[0], both[1], atol=2e-16, rtol=0)
    np.testing.assert_allclose(both[1].numpy(), np.eye(3) - 0.3 / 3 * laplacian, atol=2e-16)
    options = {"federation": ragged(), **MINI}
    left, right = (predictors(run(method, 5, **options)) for method in (l2gd(0.3), fedu(0.3)))
    assert not all(torch.equal(left[path], right[path]) for path in left)
    trials(4)
    pull = 1 - 0.7**4
    same(predictors(run(l2gd(0.3), 5, **options)), predictors(run(fedu(pull), 5, **options)), 1e-12)


@pytest.mark.oracle("FU1")
@degenerate
@partial
def test_fu1_without_edges_it_is_local_training(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    alone = predictors(run(local(), 5, **options))
    same(predictors(run(fedu(0.3, torch.zeros(7, 7)), 5, **options)), alone, 1e-12)
    same(predictors(run(fedu(0.0), 5, **options)), alone, 1e-12)


@pytest.mark.oracle("FU2")
def test_fu2_blocks_do_not_influence_each_other():
    graph = torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    one, two = (predictions(run(fedu(0.6, graph), 5, federation=quadratic(optima=(-1.0, 0.5, b)))) for b in (3.0, -7.0))
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert one[2] == pytest.approx(predictions(run(local(), 5))[2], abs=1e-12)


@pytest.mark.oracle("FU3")
@pytest.mark.parametrize("graph", ["complete", "same", "nearest"])
def test_fu3_rows_sum_to_one(graph):
    federation = metadata(ragged(), place=[0.0, 1.0, 2.5, 4.0, 8.0, 9.0, 20.0])
    matrix = mixing_of(fedu(0.9, graph, ("place",), neighbours=2), federation)
    assert matrix.sum(1).tolist() == pytest.approx([1.0] * 7, abs=1e-15)
    assert bool((matrix >= 0).all())
    torch.testing.assert_close(matrix, matrix.T)


def test_fedu_graphs_by_metadata():
    """Numbers: the two nearest on either side. Categories: clients that agree, so a group's mean at full strength."""
    line = metadata(quadratic((1.0,) * 5, (0.0,) * 5, (4,) * 5), place=[0.0, 1.0, 2.0, 3.0, 10.0])
    edges = mixing_of(fedu(1.0, "nearest", ("place",), neighbours=1), line).fill_diagonal_(0.0) > 0
    assert edges.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2], [3, 4], [4, 3]]
    groups = metadata(quadratic((1.0,) * 4, (0.0,) * 4, (4,) * 4), group=["x", "y", "x", "y"])
    half = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]] * 2, dtype=torch.float64)
    torch.testing.assert_close(mixing_of(fedu(1.0, "same", ("group",)), groups), half)


@pytest.mark.oracle("PM7")
def test_pm7_fedu_on_the_complete_graph_approaches_the_joint_optimum():
    """strength = eta K lam; the bias of alternating steps is of first order, so halving twice removes it."""
    limits = [alternating(eta, 2 * eta, 2) for eta in (0.01, 0.005)]
    for eta, limit in zip((0.01, 0.005), limits, strict=True):
        stays = advanced(placed(fedu(2 * eta), limit, lr=eta, steps=2), 3)
        assert stays.tolist() == pytest.approx(limit.tolist(), abs=1e-14)
    assert advanced(placed(fedu(0.2), JOINT + 1.0, lr=0.1), 150).tolist() == close(alternating(0.1, 0.2, 2).tolist())
    assert np.abs(limits[0] - JOINT).max() < 0.03
    assert np.abs(2 * limits[1] - limits[0] - JOINT).max() < 1e-3


def test_fedu_with_a_given_graph_solves_its_own_problem():
    """A path a - b - c: its fixed point in closed form; the optimum moves by the square of small steps alone."""
    path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    laplacian = np.array([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]])
    mixing = np.eye(3) - 0.1 * laplacian
    limit = np.linalg.solve(np.eye(3) - mixing @ np.diag(1 - 0.1 * A), mixing @ (0.1 * A * B))
    assert predictions(at_rest(fedu(0.1, path), 250, lr=0.1, steps=1)) == close(limit.tolist())
    limit = np.linalg.solve(np.diag(A) + laplacian, A * B)
    moved = advanced(placed(fedu(1e-4, path), limit, lr=1e-4, steps=1), 1) - limit
    assert np.abs(moved).max() < 1e-6


def test_an_absent_neighbour_of_fedu_counts_with_its_last_model():
    done = run(fedu(0.6), 2, steps=1, participation=Fixed([["a", "b", "c"], ["a"]]))
    y = np.array([-0.1, 0.1, 1.2])
    x = 0.4 * y + 0.6 * y.mean()
    mine = x[0] - 0.1 * (x[0] + 1)
    after = 0.4 * mine + 0.6 * (mine + x[1] + x[2]) / 3
    assert predictions(done) == close([after, x[1], x[2]])


def test_an_unseen_client_of_fedu_inherits_from_its_neighbours():
    federation = metadata(quadratic(), group=["x", "x", "y"])
    guest = metadata(newcomer(), group=["x"])
    done = run(fedu(0.5, "same", ("group",)), 3, federation=federation)
    x = predictions(done)
    assert predictions(onboard(done, guest, visits=0)) == close([(x[0] + x[1]) / 2])
    everybody = run(fedu(0.5), 3, federation=federation)
    assert predictions(onboard(everybody, guest, visits=0)) == close([np.mean(predictions(everybody))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedu(-0.1), "must be >= 0"),
        (lambda: fedu(graph="ring"), "graph='ring'"),
        (lambda: fedu(graph=torch.tensor([[0.0, 1.0], [0.5, 0.0]])), "symmetric"),
        (lambda: run(fedu(graph=torch.zeros(2, 2)), 1), "2 clients, the federation 3"),
        (lambda: run(fedu(0.6, torch.ones(3, 3)), 1), "above 1"),
        (lambda: l2gd(1.5), "strength=1.5"),
        (lambda: l2gd(p=1.0), r"p=1.0 in \(0, 1\)"),
        (lambda: mrmtl(-1.0), "lam=-1.0"),
        (lambda: mocha(lam1=-1.0), "lam1=-1.0"),
        (lambda: mocha(relationship="equal"), "relationship='equal'"),
        (lambda: mocha(shrink=0.0), "shrink=0.0"),
        (lambda: run(mocha(relationship=torch.eye(2)), 1), "not 3 by 3"),
        (lambda: qffl(-1.0), "q=-1.0"),
        (lambda: feddyn(0.0), "alpha=0.0"),
        (lambda: fedavgm(1.0), "momentum=1.0"),
        (lambda: fedopt("rmsprop"), "rule='rmsprop'"),
        (lambda: fedopt(tau=0.0), "tau=0.0"),
        (lambda: fedopt(betas=(0.9, 1.0)), "betas"),
        (lambda: reptile(after=-1), "after=-1"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(PluresError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [lambda: mrmtl(0.0), lambda: l2gd(0.0), lambda: fedu(0.0), lambda: qffl(0.0), lambda: fedavgm(0.0)],
)
def test_degenerate_parameters_are_named(make):
    with pytest.warns(PluresWarning):
        make()


# MOCHA ----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("MO0", "PM7")
@pytest.mark.parametrize("steps", [1, 4])
def test_mo0_mean_regularised_it_reaches_the_joint_optimum(steps):
    """lam1 Omega = (lam/2)(I - 11^T/n) with lam = 1, given by name or as a matrix; for any number of steps."""
    for relationship in ("mean", torch.from_numpy(MEAN)):
        done = run(mocha(0.5, 0.0, relationship), 110, steps=steps, lr=0.3)
        assert predictions(done) == close(JOINT.tolist())


def test_mocha_reaches_the_optimum_of_any_relationship_with_any_cohort():
    """Related and opposed clients: lam1 tr(W Omega W^T) + lam2 ||W||^2, in closed form."""
    root = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, -2.0], [0.5, 0.0, 1.0]])
    omega, lam1, lam2 = root @ root.T, 0.7, 0.3
    optimum = np.linalg.solve(np.diag(A) + 2 * lam1 * omega + 2 * lam2 * np.eye(3), A * B)
    cohorts = Fixed([["a", "b", "c"], ["a", "c"], ["b"], ["b", "c"]])
    for participation in (None, cohorts):
        method = mocha(lam1, lam2, torch.from_numpy(omega))
        done = run(method, 200, lr=0.1, steps=3, participation=participation)
        assert predictions(done) == pytest.approx(optimum.tolist(), abs=1e-8)


def test_every_round_of_mocha_lowers_its_objective():
    """With sub-problems solved to the end and clients that repel each other, plain block steps would diverge."""
    omega, lam1 = np.ones((3, 3)) + 0.01 * np.eye(3), 3.0

    def objective(w: np.ndarray) -> float:
        return float((A / 2 * (w - B) ** 2).sum() + lam1 * w @ omega @ w)

    values = [
        objective(np.array(predictions(run(mocha(lam1, 0.0, torch.from_numpy(omega)), r, lr=0.04, steps=60))))
        for r in range(6)
    ]
    assert all(later < earlier for earlier, later in pairwise(values))
    jacobi = np.linalg.solve(np.diag(A + 2 * lam1 * np.diag(omega)), 2 * lam1 * (omega - np.diag(np.diag(omega))))
    assert np.abs(np.linalg.eigvals(jacobi)).max() > 1


@pytest.mark.oracle("MO1")
@partial
def test_mo1_without_relationship_it_is_local_ridge_regression(cohort):
    nothing = torch.zeros(3, 3)
    alone = run(mocha(1.0, 0.25, nothing), 80, lr=0.2)
    assert predictions(alone) == close((A * B / (A + 0.5)).tolist())
    options = {"federation": ragged(), "participation": cohort, **MINI, "model": logistic}
    decayed = Method(layout=local().layout, schedule=(Phase(optimizer=SGD(0.1, weight_decay=0.5)),))
    left, right = (predictors(run(m, 5, **options)) for m in (mocha(1.0, 0.25, torch.zeros(7, 7)), decayed))
    same(left, right, 1e-14)


def logistic() -> nn.Module:
    return nn.Linear(5, 3)


@pytest.mark.oracle("MO2")
def test_mo2_the_relationship_of_given_models():
    w = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    expected = [
        [0.20512821, 0.17948718, -0.05128205],
        [0.17948718, 0.28205128, 0.20512820],
        [-0.05128205, 0.20512820, 0.51282051],
    ]
    assert covariance(w.T).tolist() == [pytest.approx(row, abs=1e-8) for row in expected]


@pytest.mark.oracle("MO3")
def test_mo3_the_relationship_is_a_covariance_of_trace_one():
    generator = torch.Generator().manual_seed(0)
    for clients, d in ((3, 2), (5, 5), (4, 40)):
        sigma = covariance(torch.randn(clients, d, generator=generator, dtype=torch.float64))
        assert float(sigma.trace()) == close(1.0)
        assert float(torch.linalg.eigvalsh(sigma).min()) > -1e-12
    alike = covariance(torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(alike, torch.full((4, 4), 0.25, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(covariance(torch.zeros(4, 3, dtype=torch.float64)), torch.eye(4).double() / 4)


def test_mocha_learns_which_clients_are_related():
    """Two pairs of clients with opposite truths: the learned relationship shows them, and helps."""
    generator = np.random.default_rng(0)
    truth = np.array([1.0, -2.0, 0.5, 1.5])
    rows = [generator.normal(size=(8, 4)) for _ in range(4)]
    signs = (1, 1, -1, -1)
    y = [x @ truth * s + generator.normal(scale=1.0, size=8) for x, s in zip(rows, signs, strict=True)]
    federation = quadratic((1.0,) * 4, (0.0,) * 4, (8,) * 4)
    federation = replace(
        federation, inputs=torch.from_numpy(np.concatenate(rows)), targets=torch.from_numpy(np.concatenate(y))[:, None]
    )
    options = {"federation": federation, "model": lambda: nn.Linear(4, 1, bias=False), "lr": 0.05, "steps": 5}
    coupled, alone = run(mocha(3.0), 40, **options), run(local(), 40, **options)
    sigma = covariance(predictors(coupled)["weight"].flatten(1))
    assert min(float(sigma[0, 1]), float(sigma[2, 3])) > 0.1
    assert float(sigma[0, 2]) < -0.1

    def error(done: Run) -> float:
        found = predictors(done)["weight"].flatten(1).numpy()
        return float(np.mean([np.square(w - s * truth).sum() for w, s in zip(found, signs, strict=True)]))

    assert error(coupled) < 0.5 * error(alone)


def test_mocha_refuses_models_that_are_not_linear():
    with pytest.raises(PluresError, match="weights in 2 layers: use a linear model"):
        run(mocha(), 1, federation=ragged(), **MINI)


def test_an_unseen_client_of_mocha_is_pulled_to_the_mean():
    done = run(mocha(0.5, 0.0, "mean"), 50)
    w = np.mean(predictions(done))
    assert predictions(onboard(done, newcomer(), visits=0)) == close([w])
    pull = 2 * 0.5 * 2
    far = predictions(onboard(done, newcomer(), visits=100))
    assert far == close([(2.0 * 9.0 + pull * w) / (2.0 + pull)])


def test_mocha_sends_a_model_up_and_an_anchor_down():
    assert traffic(run(mocha(), 0).bound) == (8, 8)


# q-FFL ----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("QF0")
@degenerate
@partial
def test_qf0_without_fairness_it_is_uniform_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    same(shared(run(qffl(0.0), 5, **options)), shared(run(fedavg("uniform"), 5, **options)), 1e-12)
    rounds = [weight(run(qffl(0.0), r)) for r in (1, 2, 3)]
    assert rounds == [printed(x) for x in (0.6366666667, 1.0207888889, 1.2525426296)]


@pytest.mark.oracle("QF1")
@pytest.mark.parametrize(
    ("q", "expected"),
    [(1.0, (0.6129771399, 1.0726631542, 1.3771518189)), (5.0, (0.1708185038, 0.3319106763, 0.4838302735))],
)
def test_qf1_rounds(q, expected):
    assert [weight(run(qffl(q), r)) for r in (1, 2, 3)] == [printed(x) for x in expected]


def fair_optimum(q: float) -> float:
    """The root of ``sum f_i^q f_i'`` on Q3."""
    low, high = 0.0, 3.0
    for _ in range(200):
        w = (low + high) / 2
        slope = ((A / 2 * (w - B) ** 2) ** q * A * (w - B)).sum()
        low, high = (w, high) if slope < 0 else (low, w)
    return low


@pytest.mark.oracle("QF2")
def test_qf2_limit():
    assert fair_optimum(1.0) == printed(1.772840989)
    assert weight(at_rest(qffl(1.0), 150, steps=1)) == printed(1.772840989)


@pytest.mark.oracle("QF3")
def test_qf3_large_q_tends_to_the_best_worst_loss():
    """Where the losses of the outer clients meet: (w + 1)^2 / 2 = 2 (w - 3)^2, so w = 5/3."""
    limits = [weight(at_rest(qffl(q), 120, steps=1)) for q in (1.0, 8.0, 64.0)]
    assert limits == [pytest.approx(fair_optimum(q), abs=1e-8) for q in (1.0, 8.0, 64.0)]
    gaps = [limit - 5 / 3 for limit in limits]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.005


def test_qffl_with_a_cohort_and_an_unseen_client():
    """By hand from the paper's Algorithm 2, with only clients b and c."""
    a, b, inverse_lr = A[1:], B[1:], 10.0
    loss = a / 2 * b**2 + 1e-10
    dw = inverse_lr * (0 - (1 - (1 - 0.1 * a) ** 2) * b)
    h = 2 * loss * dw**2 + inverse_lr * loss**2
    expected = -(loss**2 * dw).sum() / h.sum()
    done = run(qffl(2.0), 1, participation=Fixed([["b", "c"]]))
    assert weight(done) == close(expected)
    assert predictions(onboard(done, newcomer())) == [weight(done)]
    model, weight_of_the_upload = 8, 8
    assert traffic(done.bound) == (model + weight_of_the_upload, model)


# FedDyn ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("DY0")
@pytest.mark.parametrize(("steps", "alpha", "rounds"), [(1, 2.0, 150), (2, 2.0, 100), (5, 2.0, 80)])
def test_dy0_no_drift(steps, alpha, rounds):
    """The uniform optimum sum a b / sum a = 12/7 for any number of steps, and there h_i = grad f_i."""
    done = run(feddyn(alpha), rounds, steps=steps, lr=0.2)
    assert weight(done) == close(12 / 7)
    assert personal(done, "slope") == pytest.approx((A * (12 / 7 - B)).tolist(), abs=1e-8)


def test_feddyn_by_hand():
    """Two rounds with one step, from w = 0: Algorithm 1 written out."""
    alpha, w, h, own = 0.5, 0.0, 0.0, np.zeros(3)
    for rounds in (1, 2):
        x = w - 0.1 * (A * (w - B) - own)
        own = own - alpha * (x - w)
        h = h - alpha * (x - w).mean()
        w = x.mean() - h / alpha
        done = run(feddyn(alpha), rounds, steps=1)
        assert weight(done) == close(w)
        assert personal(done, "slope") == close(own.tolist())


@pytest.mark.oracle("DY0")
def test_feddyn_with_two_steps_by_hand():
    """The proximal term vanishes in a first step and at the limit, so it takes two steps to see its weight."""
    alpha, lr, w, h = 0.5, 0.1, 0.0, 0.0
    slopes = [0.0, 0.0, 0.0]
    for rounds in (1, 2, 3):
        local = []
        for i, (a, b) in enumerate(((1.0, -1.0), (2.0, 0.5), (4.0, 3.0))):
            x = w
            for _ in range(2):
                x -= lr * (a * (x - b) - slopes[i] + alpha * (x - w))
            slopes[i] -= alpha * (x - w)
            local.append(x)
        average = sum(local) / 3
        h -= alpha * (average - w)
        w = average - h / alpha
        assert weight(run(feddyn(alpha), rounds, steps=2, lr=lr)) == pytest.approx(w, abs=1e-12)


def test_the_server_of_feddyn_keeps_the_mean_of_what_clients_keep():
    cohorts = Fixed([["a"], ["b", "c"], ["c"], ["a", "b", "c"], ["b"]])
    done = run(feddyn(2.0), 0, participation=cohorts, lr=0.2)
    for _ in range(120):
        done.step()
        assert float(done.memory["model"]["model/weight"]) == close(np.mean(personal(done, "slope")))
    assert weight(done) == pytest.approx(12 / 7, abs=1e-6)


def test_an_unseen_client_of_feddyn_gets_the_global_model():
    done = run(feddyn(0.5), 3)
    assert predictions(onboard(done, newcomer())) == [weight(done)]


# Server steps ---------------------------------------------------------------------------------------------------


@pytest.mark.oracle("SO0")
@degenerate
@partial
def test_so0_without_momentum_it_is_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    same(shared(run(fedavgm(0.0), 5, **options)), shared(run(fedavg(), 5, **options)), 1e-14)
    half = run(fedavgm(0.0, 0.5), 5, **options)
    same(shared(half), shared(run(fedavg(server_lr=0.5), 5, **options)), 1e-14)


P, C = np.array([1, 2, 3]) / 6, 1 - (1 - 0.1 * A) ** 2


def change(w: float) -> float:
    """The mean change of a round of two steps on Q3, by examples."""
    return float((P * C * (B - w)).sum())


@pytest.mark.oracle("SO1")
def test_so1_momentum_by_hand():
    w = m = 0.0
    for rounds in (1, 2, 3):
        m = 0.9 * m + change(w)
        w += 0.5 * m
        assert weight(run(fedavgm(0.9, 0.5), rounds)) == close(w)


@pytest.mark.oracle("SO1")
@pytest.mark.parametrize("rule", ["adagrad", "adam", "yogi"])
def test_so1_adaptive_steps_by_hand(rule):
    w, m, v, tau = 0.0, 0.0, 0.1**2, 0.1
    for rounds in (1, 2, 3, 4):
        d = change(w)
        m = 0.8 * m + 0.2 * d
        v = {
            "adagrad": v + d * d,
            "adam": 0.9 * v + 0.1 * d * d,
            "yogi": v - 0.1 * d * d * np.sign(v - d * d),
        }[rule]
        w += 0.3 * m / (v**0.5 + tau)
        assert weight(run(fedopt(rule, 0.3, (0.8, 0.9), tau), rounds)) == close(w)


def test_server_steps_reach_fedavgs_limit():
    limit = (P * C * B).sum() / (P * C).sum()
    assert weight(run(fedavgm(0.5, 1.0), 80)) == close(limit)
    assert weight(run(fedopt("adagrad", 1.0, (0.0, 0.99)), 120)) == pytest.approx(limit, abs=1e-6)
    assert predictions(onboard(run(fedopt(), 3), newcomer())) == predictions(run(fedopt(), 3))[:1]


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("method", [fedavgm(0.9, 0.5), fedopt("yogi"), feddyn(0.1), reptile(0, 0.3)])
def test_server_steps_move_parameters_and_average_running_statistics(method):
    """After one round every method has the running statistics of plain averaging."""
    options = {"federation": ragged(), "model": Normed, "steps": 3, "batch_size": 16}
    plain = Method(schedule=method.schedule, layout=method.layout, slots=method.slots)
    rule = method.combine.weights
    done, averaged = run(method, 1, **options), run(replace(plain, combine=Combine(rule)), 1, **options)
    left, right = shared(done), shared(averaged)
    for path in ("1.running_mean", "1.running_var"):
        assert torch.equal(left[path], right[path])
    assert not torch.equal(left["0.weight"], right["0.weight"])
    later = shared(run(method, 8, **options))
    assert float(later["1.running_var"].min()) > 0


def test_a_block_of_running_statistics_has_no_server_step():
    layout = {norm_statistics: Shared(), "model": Shared()}
    rule = Combine(server=ServerOptimizer(SGD(0.5, 0.9)))
    options = {"federation": ragged(), "model": Normed, "steps": 3, "batch_size": 16}
    split, whole = (run(Method(layout=lay, combine=rule), 3, **options) for lay in (layout, {"model": Shared()}))
    same(shared(split), shared(whole))
    assert split.memory["norm_statistics"] == {}


# Reptile --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("RE0")
@partial
@degenerate
def test_reptile_with_full_steps_is_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    base = shared(run(fedavg(), 5, **options))
    same(shared(run(reptile(2, 1.0), 5, **options)), base)
    same(shared(run(reptile(5, 0.3), 5, **options)), base)
    slow = shared(run(reptile(0, 0.3), 5, **options))
    same(slow, shared(run(fedavg(server_lr=0.3), 5, **options)))
    assert not torch.equal(slow["0.weight"], base["0.weight"])


def test_reptile_by_hand():
    """FedAvg for two rounds, then three tenths of the way; prediction after two passes of a full batch."""
    w = 0.0
    for rounds in range(1, 6):
        w += (1.0 if rounds <= 2 else 0.3) * change(w)
        done = run(reptile(2, 0.3, epochs=2), rounds)
        assert weight(done) == close(w)
    assert predictions(done) == close([b + (1 - 0.1 * a) ** 2 * (w - b) for a, b in zip(A, B, strict=True)])
    guest = onboard(done, newcomer())
    assert predictions(guest) == close([9.0 + 0.8**2 * (w - 9.0)])


def test_reptile_goes_on_from_a_checkpoint():
    """The number of rounds that the server has done is part of its memory."""
    whole = run(reptile(2, 0.3), 5)
    first = run(reptile(2, 0.3), 3)
    again = run(reptile(2, 0.3), 0)
    restore(again, snapshot(first))
    again.step(), again.step()
    assert weight(again) == weight(whole)


# All ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [mrmtl(), l2gd(), fedu(), qffl(), feddyn(), fedavgm(), fedopt(), reptile(after=1)],
    ids=["mrmtl", "l2gd", "fedu", "qffl", "feddyn", "fedavgm", "fedopt", "reptile"],
)
def test_defaults_differ_from_every_baseline(method):
    """So the equalities above are not vacuous."""
    options = {"federation": ragged(), **MINI}
    mine = predictors(run(method, 3, **options))
    for base in (fedavg(), fedavg("uniform"), local(), ditto()):
        other = predictors(run(base, 3, **options))
        assert not all(torch.equal(mine[path], other[path]) for path in mine)


def test_a_server_step_composes_with_a_proximal_objective():
    """They are different parts of a method."""

    def near(x: State, received: State, batch) -> torch.Tensor:
        return task_loss(x.model, batch) + 0.5 * squared_distance(x.model, received.model)

    proximal = Method(schedule=(Phase(objective=near),))
    both = proximal + fedavgm(0.9)
    w = m = 0.0
    k = (1 - (1 - 0.1 * (A + 1)) ** 2) * A / (A + 1)
    for rounds in (1, 2, 3):
        m = 0.9 * m + float((P * k * (B - w)).sum())
        w += m
        assert weight(run(both, rounds)) == close(w)
