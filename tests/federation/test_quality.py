"""What missing values and noisy sensors do to slopes: exact finite designs, the simulator, and undoing it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.federation import (
    SPLITS,
    Federation,
    attenuation,
    completeness_report,
    degrade,
    from_arrays,
    imputed_slopes,
    load,
)

BETA, MISSING, NOISE = 2.0, 0.3, 0.5
X = np.repeat([0.0, 2.0], 10)  # mean 1, variance 1
ABSENT = np.tile(np.arange(10) < 3, 2)  # a rate of 0.3, the same for both values: exactly independent of x


def slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.cov(x, y, bias=True)[0, 1] / np.var(x))


@pytest.mark.oracle("QA2")
def test_zero_imputation_in_an_exact_design():
    assert slope(np.where(ABSENT, 0, X), BETA * X) == pytest.approx(1.5384615385, abs=1e-10)
    assert BETA * attenuation("zero", missing=MISSING, mean=1, variance=1) == pytest.approx(1.5384615385, abs=1e-10)


@pytest.mark.oracle("QA2")
def test_mean_imputation_shrinks_the_correlation_and_not_the_slope():
    imputed = np.where(ABSENT, 1, X)
    assert slope(imputed, BETA * X) == pytest.approx(2, abs=1e-12)
    assert np.corrcoef(imputed, BETA * X)[0, 1] == pytest.approx(0.8366600265, abs=1e-10)
    assert BETA * attenuation("mean", missing=MISSING) == 2
    assert attenuation("correlation", missing=MISSING) == pytest.approx(0.8366600265, abs=1e-10)


@pytest.mark.oracle("QA2")
def test_an_imputed_target():
    assert slope(X, np.where(ABSENT, BETA, BETA * X)) == pytest.approx(1.4, abs=1e-12)
    assert BETA * attenuation("target", missing=MISSING) == pytest.approx(1.4, abs=1e-12)


@pytest.mark.oracle("QA2")
def test_sensor_noise_in_an_exact_design():
    x, error = np.repeat([0.0, 2.0], 2), np.tile([-1, 1], 2) * math.sqrt(NOISE)
    assert slope(x + error, BETA * x) == pytest.approx(1.3333333333, abs=1e-10)
    assert BETA * attenuation("noise", variance=1, noise=NOISE) == pytest.approx(1.3333333333, abs=1e-10)


@pytest.mark.oracle("QA2")
def test_with_several_inputs_mean_imputation_moves_the_slopes():
    """Four points of correlation 1/2 and every pattern of missing values, as often as its probability says."""
    points = np.repeat([[1, 1], [-1, -1], [1, -1], [-1, 1]], (3, 3, 1, 1), axis=0).astype(float)
    patterns = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], (49, 21, 21, 9), axis=0)
    x = np.repeat(points, len(patterns), axis=0)
    there = np.tile(patterns, (len(points), 1))
    covariance = torch.tensor([[1, 0.5], [0.5, 1]], dtype=torch.float64)
    for beta in ([2, 0], [1, 1], [1, -1]):
        found = np.linalg.lstsq(x * there, x @ np.array(beta, float), rcond=None)[0]
        expected = imputed_slopes(torch.tensor(beta, dtype=torch.float64), covariance, 1 - MISSING)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)
        if beta == [2, 0]:  # 2 (1 - d r^2) / (1 - d^2 r^2) and 2 (1 - d) r / (1 - d^2 r^2)
            np.testing.assert_allclose(found, [1.65 / 0.8775, 0.3 / 0.8775], atol=1e-12)
        if beta == [1, 1]:  # the popular claim is false even here: both slopes grow
            np.testing.assert_allclose(found, [1.5 / 1.35] * 2, atol=1e-12)
        if beta == [1, -1]:
            np.testing.assert_allclose(found, [0.5 / 0.65, -0.5 / 0.65], atol=1e-12)
    alone = imputed_slopes(torch.tensor([2.0]), torch.tensor([[1.0]]), MISSING)
    torch.testing.assert_close(alone, torch.tensor([2.0]))


@pytest.fixture(scope="module")
def line() -> Federation:
    """Five clients with y = 2 x + e, x of mean 1 and variance 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, (250_000, 1))
    y = BETA * x[:, 0] + 0.1 * rng.normal(size=len(x))
    return from_arrays(x, y.astype(np.float32), np.arange(len(x)) % 5, dtype=torch.float64)


def slopes(federation: Federation) -> list[float]:
    found = []
    for number in range(len(federation)):
        rows = federation.splits["train"][number]
        found.append(slope(federation.inputs[rows, 0].numpy(), federation.targets[rows, 0].numpy()))
    return found


@pytest.mark.oracle("QA2")
def test_the_simulator_agrees_with_the_closed_forms(line: Federation):
    shares = {"0": 1.0, "1": 0.7, "2": 0.7, "3": 0.4, "4": 0.9}
    zero = degrade(line, completeness=shares)
    mean = degrade(line, completeness=shares, how="mean")
    noisy = degrade(line, noise={"0": 0, "1": 0.5, "2": 0, "3": 1, "4": 0.1})
    at_zero = [BETA * attenuation("zero", missing=1 - share, mean=1) for share in shares.values()]
    assert slopes(zero) == pytest.approx(at_zero, abs=0.03)  # standard error 0.008 with 30000 train rows
    assert slopes(mean) == pytest.approx([2] * 5, abs=0.03)
    assert noisy.metadata["reliability"] == (1, pytest.approx(2 / 3), 1, 0.5, pytest.approx(1 / 1.1))
    assert slopes(noisy) == pytest.approx([BETA * rho for rho in noisy.metadata["reliability"]], abs=0.03)
    freed = [found / rho for found, rho in zip(slopes(noisy), noisy.metadata["reliability"], strict=True)]
    assert freed == pytest.approx([2] * 5, abs=0.05)
    assert zero.metadata["completeness"] == pytest.approx(list(shares.values()), abs=0.01)
    assert zero.metadata["completeness"][0] == 1.0


def test_the_simulator_says_what_it_did(line: Federation):
    small = line.subset(["1", "3"])
    poor = degrade(small, completeness=lambda name: 0.5 if name == "3" else 1, how="mean", seed=4)
    assert poor.metadata["completeness"][0] == 1
    rows = torch.cat([small.splits[s][1] for s in SPLITS])
    changed = (poor.inputs[rows, 0] != small.inputs[rows, 0]).numpy()
    assert poor.metadata["missing values"] == (0, int(changed.sum()))
    assert poor.describe().missing == int(changed.sum())
    train = small.splits["train"][1]
    kept = poor.inputs[train, 0] == small.inputs[train, 0]
    assert poor.metadata["completeness"][1] == float(kept.double().mean())
    fill = poor.inputs[rows, 0][torch.from_numpy(changed)]
    torch.testing.assert_close(fill, small.inputs[train, 0][kept].mean().expand(len(fill)))
    untouched = torch.cat([small.splits[s][0] for s in SPLITS])
    assert torch.equal(poor.inputs[untouched], small.inputs[untouched])
    alone = degrade(line.subset(["3"]), completeness=0.5, how="mean", seed=4)
    assert torch.equal(alone.inputs[rows], poor.inputs[rows])
    assert not torch.equal(degrade(small, completeness=0.5, how="mean", seed=5).inputs[rows], poor.inputs[rows])
    same = degrade(small)
    assert torch.equal(same.inputs, small.inputs)
    assert same.metadata["reliability"] == same.metadata["completeness"] == (1, 1)


def test_only_the_named_columns_and_channels():
    rng = np.random.default_rng(1)
    f = from_arrays(rng.normal(size=(90, 3)), rng.normal(size=90), ["a"] * 90, columns=("u", "v", "w"))
    poor = degrade(f, completeness=0.5, noise=1.0, columns=("w",))
    assert torch.equal(poor.inputs[:, :2], f.inputs[:, :2])
    assert bool((poor.inputs[:, 2] != f.inputs[:, 2]).all())
    pictures = from_arrays(5 + rng.normal(size=(4000, 2, 3, 3)), rng.normal(size=4000), ["a"] * 4000)
    noisy = degrade(pictures, noise=0.25)
    added = (noisy.inputs - pictures.inputs).double()
    assert float(added.var()) == pytest.approx(0.25, rel=0.02)


def test_completeness_of_heart_is_that_of_its_table():
    heart = load("heart")
    report = completeness_report(heart)
    assert report.clients == heart.clients
    assert report.columns[:3] == ("age", "sex", "cp")
    assert len(report.columns) == 13
    lost = dict(zip(report.columns, (1 - report.share[heart.index("switzerland")]).tolist(), strict=True))
    assert lost["chol"] == 1
    assert lost["age"] == 0
    sizes = [sum(client.sizes.values()) for client in heart.describe().clients]
    counted = [round((1 - share) * 13 * size) for share, size in zip(report.overall, sizes, strict=True)]
    assert counted == list(heart.metadata["missing values"])


def test_completeness_of_raw_columns():
    raw = [[1, np.nan], [np.nan, np.nan], [3, 4], [5, 6]]
    report = completeness_report(raw, ["b", "b", "a", "a"], columns=("u", "v"))
    assert report.clients == ("a", "b")
    assert report.share.tolist() == [[1, 1], [0.5, 0]]
    assert report.overall == (1, 0.25)


def test_bad_qualities_are_named(line: Federation):
    for options, message in (
        ({"completeness": 0}, r"completeness 0 of client '0'; give a share in \(0, 1\]"),
        ({"noise": -1}, "noise -1 of client '0'; give a number of at least 0"),
        ({"noise": {"0": 1}}, "noise has no entry for client '1'"),
        ({"how": "median"}, "how='median' is unknown"),
        ({"columns": ("age",)}, "no column 'age'"),
    ):
        with pytest.raises(PluresError, match=message):
            degrade(line, **options)
    with pytest.raises(PluresError, match="degrade it once"):
        degrade(degrade(line), noise=1)
    tokens = from_arrays(np.ones((9, 2)), np.arange(9) % 2, ["a"] * 9, dtype=torch.int64)
    with pytest.raises(PluresError, match="cannot be noisy; give floating point"):
        degrade(tokens)
    with pytest.raises(PluresError, match="has no column names"):
        completeness_report(tokens)
    with pytest.raises(PluresError, match="give \\(n, columns\\) and the client of each row"):
        completeness_report([[1.0]])
    with pytest.raises(PluresError, match="needs a rate in"):
        attenuation("zero", missing=1)
