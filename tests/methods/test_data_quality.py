"""Data of different quality: weights by reported quality, and inputs corrected for noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures.errors import PluresError
from plures.federation import SPLITS, Federation, Split, attenuation, degrade
from plures.method import Method
from plures.methods import fedavg, fedper
from plures.methods.debias import debias
from plures.methods.quality import quality
from plures.run import Execution, Fixed, Run, Uniform, onboard
from plures.run.cost import traffic
from plures.tasks import Regression
from problems import BodyHead, personal, quadratic, run, shared, weight
from shifted import mlp, ragged

TOGETHER = Execution("vmap", 16, False, "float64")
COHORTS = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])


def reported(data: Federation, *numbers: object, column: str = "completeness") -> Federation:
    return replace(data, metadata={**data.metadata, column: numbers})


def trained(method: Method, **options) -> Run:
    """Mini-batches on ragged clients."""
    given = {"steps": 4, "batch_size": 8, "federation": ragged(), "model": mlp, "execution": TOGETHER, **options}
    return run(method, 5, **given)


# Weights ----------------------------------------------------------------------------------------------------------


@COHORTS
@pytest.mark.oracle("QA0")
def test_qa0_full_quality_is_fedavg(cohort):
    full = reported(ragged(), *[1.0] * 7)
    left, right = (shared(trained(m, federation=full, participation=cohort)) for m in (quality(), fedavg()))
    assert all(torch.equal(left[path], right[path]) for path in left)
    poorer = shared(trained(quality(), federation=reported(ragged(), *[1.0] * 6, 0.5), participation=cohort))
    assert not all(torch.equal(left[path], poorer[path]) for path in left)


@COHORTS
@pytest.mark.oracle("QA1")
def test_qa1_no_quality_removes_the_client(cohort):
    gone = reported(quadratic(), 1.0, 0.0, 1.0)
    cohorts = cohort and Fixed([["a", "b"], ["c"], ["b", "c"]])
    rest = cohorts and Fixed([["a"], ["c"], ["c"]])
    left = [weight(run(quality(), r, federation=gone, participation=cohorts)) for r in range(1, 5)]
    right = [weight(run(fedavg(), r, federation=gone.subset(["a", "c"]), participation=rest)) for r in range(1, 5)]
    assert left == pytest.approx(right, abs=1e-14)


def test_qa1_a_cohort_without_quality_changes_nothing():
    gone = reported(quadratic(), 1.0, 0.0, 1.0)
    done = run(quality(), 2, federation=gone, participation=Fixed([["a", "c"], ["b"]]))
    assert weight(done) == weight(run(quality(), 1, federation=gone, participation=Fixed([["a", "c"]])))


def test_weights_are_examples_times_quality_or_over_variance():
    """After one round on Q3, clients bring -0.19, 0.18, 1.92 with 10, 20, 30 examples."""
    for method, rho in (
        (quality("rho"), (1.0, 0.5, 0.25)),
        (quality("rho", inverse=True), (1.0, 2.0, 4.0)),
    ):
        done = run(method, 1, federation=reported(quadratic(), *rho, column="rho"))
        assert weight(done) == pytest.approx((-0.19 * 10 + 0.18 * 10 + 1.92 * 7.5) / 27.5, abs=1e-14)


def test_quality_composes_leaves_personal_parts_alone_and_sends_one_weight_more():
    data = reported(quadratic(), 1.0, 0.5, 0.25)
    done = run(fedper() + quality(), 1, federation=data, model=BodyHead, lr=0.05)
    plain = run(fedper(), 1, federation=data, model=BodyHead, lr=0.05)
    assert personal(done, "model", "h.weight") == personal(plain, "model", "h.weight")
    assert weight(done, path="u.weight") != weight(plain, path="u.weight")
    (up, down), (plain_up, plain_down) = traffic(done.bound), traffic(plain.bound)
    assert (up - plain_up, down) == (done.bound.network.dtype.itemsize, plain_down)


def test_an_unseen_client_gets_the_shared_model_whatever_its_quality():
    done = run(quality(), 3, federation=reported(quadratic(), 1.0, 0.5, 0.25))
    newcomer = reported(quadratic((3.0,), (9.0,), (5,), names=("z",)), 0.1)
    assert weight(onboard(done, newcomer)) == weight(done)


# Noise ------------------------------------------------------------------------------------------------------------

BETA, BIAS = 2.0, 0.5


def noisy(*variances: float, sizes: tuple[int, ...] = (4, 8, 12)) -> Federation:
    """``y = 2 x + 1/2`` with x = 0, 2 (mean 1, variance 1) seen through noise of exactly these variances.

    Every combination of x and of the sign of the noise appears equally often, so that all moments are exact.
    """
    x = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    sizes = sizes[: len(variances)]
    inputs = [(x + v**0.5 * sign).repeat(n // 4) for v, n in zip(variances, sizes, strict=True)]
    targets = [(BETA * x + BIAS).repeat(n // 4) for n in sizes]
    return Federation(
        "noisy",
        Regression(1),
        torch.cat(inputs)[:, None],
        torch.cat(targets)[:, None],
        tuple("abcdefgh"[: len(sizes)]),
        dict.fromkeys(SPLITS, Split.of(list(torch.arange(sum(sizes)).split(list(sizes))))),
        {"reliability": tuple(1 / (1 + v) for v in variances)},
    )


def line() -> nn.Module:
    return nn.Linear(1, 1)


def coefficients(done: Run) -> tuple[float, float]:
    return weight(done), weight(done, path="bias")


def fit(method: Method, data: Federation, rounds: int = 60, steps: int = 10, **options) -> Run:
    return run(method, rounds, federation=data, model=line, lr=0.15, steps=steps, **options)


def test_averaging_noisy_clients_attenuates_the_slope():
    alike = fit(fedavg(), noisy(0.5, 0.5, 0.5))
    assert coefficients(alike)[0] == pytest.approx(BETA * attenuation("noise", noise=0.5), abs=1e-9)
    assert attenuation("noise", noise=0.5) * BETA == pytest.approx(1.3333333333)
    mixed = fit(fedavg(), noisy(0.0, 0.5, 2.0), 400, steps=1)
    pooled = (4 * 0.0 + 8 * 0.5 + 12 * 2.0) / 24
    assert coefficients(mixed)[0] == pytest.approx(BETA / (1 + pooled), abs=1e-9)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("variances", [(0.5, 0.5, 0.5), (0.0, 0.5, 2.0)])
@pytest.mark.parametrize("cohort", [None, Fixed([["a", "b"], ["b", "c"], ["c", "a"]])], ids=["full", "partial"])
def test_corrected_inputs_recover_the_slope(variances, joint, cohort):
    """Each client's least squares is the truth, so neither local steps nor cohorts bias the average."""
    done = fit(debias(joint=joint), noisy(*variances), 90, participation=cohort)
    assert coefficients(done) == pytest.approx((BETA, BIAS), abs=1e-9)


def test_predictions_from_noisy_inputs_are_each_clients_least_squares():
    """The shared slope is the truth; a client with noise 2 predicts with a third of it, around its own mean 1."""
    done = fit(debias(), noisy(0.0, 0.5, 2.0), 90)
    x = torch.tensor([[1.0], [4.0]], dtype=torch.float64).expand(3, 2, 1)
    predicted = done.engine.forward(done.deployed([0, 1, 2]), x).squeeze(-1)
    at_mean = BETA + BIAS
    expected = [[at_mean, at_mean + 3 * BETA * rho] for rho in (1.0, 2 / 3, 1 / 3)]
    torch.testing.assert_close(predicted, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)


def correlated(rho: float = 0.5) -> Federation:
    """Two inputs with covariance [[1, .6], [.6, 1]], plus noise of variance 1 in both: exact second moments."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / 40)).T
    x = white[:, :2] @ torch.linalg.cholesky(torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)).T
    split = Split.of(list(torch.arange(40).split([40])))
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    data = Federation("pair", Regression(1), x + white[:, 2:], y, ("a",), dict.fromkeys(SPLITS, split))
    return reported(data, rho, column="reliability")


def test_correlated_inputs_need_the_joint_correction():
    """By itself, each input is corrected by 1/rho: ``S^-1 Sx beta / rho``; jointly, the truth."""
    slopes = {}
    for joint in (False, True):
        done = run(debias(joint=joint), 8, federation=correlated(), model=lambda: nn.Linear(2, 1), lr=0.45, steps=50)
        slopes[joint] = done.states([0])["model"]["weight"].flatten()
    truth = torch.tensor([1.0, -2.0], dtype=torch.float64)
    clean = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    alone = torch.linalg.solve(clean + torch.eye(2, dtype=torch.float64), clean @ truth) / 0.5
    torch.testing.assert_close(slopes[True], truth, atol=1e-8, rtol=0)
    torch.testing.assert_close(slopes[False], alone, atol=1e-8, rtol=0)
    assert (alone - truth).abs().max() > 0.2


def test_the_simulated_noise_is_undone():
    """`degrade` adds noise and reports the reliability that this correction reads."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(3000, 1)))
    rows = Split.of(list(torch.arange(3000).split(1000)))
    splits = {"train": rows, "validation": Split.of([rows.rows[:0]] * 3), "test": Split.of([rows.rows[:0]] * 3)}
    clean = Federation("line", Regression(1), x, BETA * x, ("a", "b", "c"), splits)
    data = degrade(clean, noise={"a": 0.2, "b": 1.0, "c": 2.0})
    plain, corrected = (coefficients(fit(method, data, 60, steps=1))[0] for method in (fedavg(), debias()))
    assert plain == pytest.approx(BETA * 3 / (1.2 + 2.0 + 3.0), rel=0.05)
    assert corrected == pytest.approx(BETA, rel=0.05)


@COHORTS
def test_full_reliability_is_fedavg(cohort):
    full = reported(ragged(), *[1.0] * 7, column="reliability")
    left, right = (shared(trained(m, federation=full, participation=cohort)) for m in (debias(), fedavg()))
    for path in left:
        torch.testing.assert_close(left[path], right[path], atol=1e-12, rtol=0)
    half = shared(trained(debias(), federation=reported(ragged(), *[0.5] * 7, column="reliability")))
    assert not torch.allclose(half["0.weight"], shared(trained(fedavg()))["0.weight"], atol=1e-3)


def test_an_unseen_client_corrects_its_own_inputs():
    done = fit(debias(), noisy(0.0, 0.5), 90)
    guest = onboard(done, noisy(2.0))
    assert coefficients(guest) == coefficients(done)
    x = torch.tensor([[[4.0]]], dtype=torch.float64)
    predicted = guest.engine.forward(guest.deployed([0]), x)
    assert float(predicted) == pytest.approx(BETA + BIAS + 3 * BETA / 3, abs=1e-8)


def test_the_shared_model_is_all_that_travels():
    data = noisy(0.0, 0.5, 2.0)
    assert traffic(fit(debias(joint=True), data, 1).bound) == traffic(fit(fedavg(), data, 1).bound)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trained(quality()), "nothing is known about 'completeness'"),
        (lambda: trained(quality(), federation=reported(ragged(), *[0.5] * 6, -0.1)), "numbers from 0 to inf"),
        (lambda: trained(quality(inverse=True), federation=reported(ragged(), *[0.0] * 7)), "numbers above 0 to inf"),
        (
            lambda: trained(quality(), federation=reported(ragged(), *"abcdefg")),
            "must hold numbers.*; client '.*' has 'a'",
        ),
        (lambda: fit(debias(), reported(quadratic(), 0.5, 1.0, 1.5, column="reliability")), "above 0 to 1.0"),
        (lambda: fit(debias(), quadratic()), "nothing is known about 'reliability'"),
    ],
)
def test_bad_reports_are_refused(make, message):
    with pytest.raises(PluresError, match=message):
        make()
