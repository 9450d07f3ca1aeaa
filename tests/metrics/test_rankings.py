"""Metrics that are not means: by hand, and compared with scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from plures.evaluate.predictions import said
from plures.metrics import REGRESSION, Predictions
from plures.metrics.auroc import auroc
from plures.metrics.average_precision import average_precision
from plures.metrics.balance import balanced_accuracy, counts, macro_f1, mean_f1, mean_recall
from plures.metrics.errors import r2
from plures.tasks import Classification, Regression
from scored import binary

NAN = math.nan
TRUE, SCORES = [1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.7, 0.2]


def several(classes: int, examples: int, seed: int) -> tuple[Predictions, dict[str, np.ndarray]]:
    """One client's predictions with ties and weights, and the same for scikit-learn."""
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(examples, classes)).round(0)
    targets = np.r_[np.arange(classes), generator.integers(0, classes, examples - classes)]
    weight = generator.integers(1, 4, examples).astype(float)
    task = Classification(tuple(map(str, range(classes))))
    made = said(task, torch.from_numpy(outputs), torch.from_numpy(targets), torch.from_numpy(weight))
    chances = made.chances.numpy()
    return made, {"y": targets, "p": chances, "decided": made.decisions.numpy(), "w": weight}


# By hand --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EV2")
def test_v1_a_tie_across_classes_counts_half() -> None:
    """Of 6 pairs, .9 wins both, .7 ties with .7 and loses to .8, and .2 loses both."""
    assert auroc.of(binary(TRUE, SCORES)) == pytest.approx(2.5 / 6)
    assert average_precision.of(binary(TRUE, SCORES)) == pytest.approx(0.7)
    assert balanced_accuracy.of(binary(TRUE, SCORES)) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.oracle("EV3")
def test_v2_three_classes() -> None:
    true = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2, 2]])
    decided = torch.tensor([[0, 0, 1, 2, 1, 1, 2, 2, 0, 1]])
    assert float(mean_recall(torch.ones(1, 10), true, decided)) == pytest.approx(0.6666667)
    assert float(mean_f1(torch.ones(1, 10), true, decided)) == pytest.approx(0.6031746)


@pytest.mark.oracle("EV4")
def test_v3_the_mean_over_clients_is_not_that_of_all_examples() -> None:
    first, second = binary([1, 1, 0, 0], [0.4, 0.3, 0.2, 0.1]), binary([1, 1, 0, 0], [0.9, 0.8, 0.7, 0.6])
    assert (auroc.of(first), auroc.of(second)) == (1, 1)
    assert auroc.of(first.joined(second)) == 0.75


@pytest.mark.oracle("EV5")
@pytest.mark.parametrize("true", [[0, 0, 0], [1, 1, 1]])
def test_v5_one_class_alone_cannot_be_ranked(true: list[int]) -> None:
    """scikit-learn says NaN for the area, and 0 or 1 for the average precision, which would count as measured."""
    made = binary(true, [0.1, 0.5, 0.9])
    assert math.isnan(auroc.of(made))
    assert math.isnan(average_precision.of(made))


def test_classes_that_a_client_lacks_are_left_out_of_its_mean() -> None:
    scores = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]]])
    made = said(Classification(("a", "b", "c")), scores.log(), torch.tensor([[0, 1, 1]]), torch.ones(1, 3))
    assert auroc.stacked(made).tolist() == [1.0]
    assert balanced_accuracy.stacked(made).tolist() == [(1 + 1 / 2) / 2]


def test_r2_by_hand() -> None:
    made = said(Regression(1), torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3))
    assert r2.of(made) == pytest.approx(1 - 1 / 2)
    assert math.isnan(r2.of(made.map(lambda t: t[:1])))


def test_probabilities_that_differ_little_are_no_ties() -> None:
    """In single precision, both probabilities are 1."""
    outputs = torch.tensor([[0.0, 20.0], [0.0, 21.0]])
    made = said(Classification(("no", "yes")), outputs, torch.tensor([0, 1]), torch.ones(2))
    assert auroc.of(made) == 1.0


def test_labels_are_ranked_one_by_one() -> None:
    scores = torch.tensor([[[0.9, 0.2], [0.8, 0.8], [0.1, 0.5]]], dtype=torch.float64)
    true = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]])
    made = Predictions(scores.logit(), true, torch.ones(1, 3), torch.zeros(1, 3), (scores > 0.5).double(), scores)
    assert auroc.stacked(made).tolist() == [(1 + 0) / 2]
    hits, claimed, real = counts(made.weight, true.long(), made.decisions.long())
    assert (hits.tolist(), claimed.tolist(), real.tolist()) == ([[1, 0]], [[2, 1]], [[1, 2]])
    assert macro_f1.stacked(made).tolist() == [(2 / 3 + 0) / 2]


# Compared with scikit-learn -----------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12),
)
def test_areas_and_precisions_are_those_of_scikit_learn(examples: list[tuple[bool, int, int]]) -> None:
    true, scores, weight = (np.array(column, dtype=float) for column in zip(*examples, strict=True))
    stacked = (
        torch.from_numpy(weight)[None],
        torch.from_numpy(scores)[None, :, None],
        torch.from_numpy(true > 0)[None, :, None],
    )
    area, precision = float(auroc.value(*stacked)), float(average_precision.value(*stacked))
    if not 0 < (true * weight).sum() < weight.sum():
        assert math.isnan(area)
        assert math.isnan(precision)
        return
    assert area == pytest.approx(sklearn.roc_auc_score(true, scores, sample_weight=weight))
    assert precision == pytest.approx(sklearn.average_precision_score(true, scores, sample_weight=weight))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_of_classes_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    made, given = several(classes, 60, seed)
    truth, chances, weight = given["y"], given["p"], given["w"]
    scores = chances[:, 1] if classes == 2 else chances
    indicators = truth if classes == 2 else np.eye(classes)[truth]
    assert auroc.of(made) == pytest.approx(
        sklearn.roc_auc_score(truth, scores, multi_class="ovr", sample_weight=weight)
    )
    assert average_precision.of(made) == pytest.approx(
        sklearn.average_precision_score(indicators, scores, sample_weight=weight)
    )
    assert balanced_accuracy.of(made) == pytest.approx(
        sklearn.balanced_accuracy_score(truth, given["decided"], sample_weight=weight)
    )
    assert macro_f1.of(made) == pytest.approx(
        sklearn.f1_score(truth, given["decided"], average="macro", sample_weight=weight)
    )


def test_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    truth, outputs, weight = generator.normal(size=(30, 2)), generator.normal(size=(30, 2)), generator.uniform(1, 2, 30)
    made = said(Regression(2), *map(torch.from_numpy, (outputs, truth, weight)))
    found = {metric.name: metric.of(made) for metric in REGRESSION}
    assert found["r2"] == pytest.approx(sklearn.r2_score(truth, outputs, sample_weight=weight))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(truth, outputs, sample_weight=weight))
    squares = sklearn.mean_squared_error(truth, outputs, sample_weight=weight)
    assert found["rmse"] == pytest.approx(math.sqrt(squares))


def test_a_client_of_one_class_leaves_the_others_as_they_are() -> None:
    """Stacked, padded and of different sizes, each client has the area that scikit-learn gives it alone."""
    generator = np.random.default_rng(0)
    scores, true = generator.integers(0, 5, (4, 20)).astype(float), generator.integers(0, 2, (4, 20)) > 0
    sizes = np.array([20, 7, 12, 5])
    true[3, :5] = True
    weight = (np.arange(20) < sizes[:, None]).astype(float)
    found = auroc.value(
        torch.from_numpy(weight), torch.from_numpy(scores)[..., None], torch.from_numpy(true)[..., None]
    )
    alone = [sklearn.roc_auc_score(true[i, :n], scores[i, :n]) for i, n in enumerate(sizes[:3])]
    assert found.tolist() == pytest.approx([*alone, NAN], nan_ok=True)


def test_nobody_gives_nothing() -> None:
    for metric in (auroc, average_precision, balanced_accuracy, macro_f1):
        made = binary([0, 1], [0.2, 0.6])
        assert math.isnan(metric.of(replace(made, weight=torch.zeros(2)))), metric.name


def test_probabilities_that_round_to_one_are_no_ties() -> None:
    """Scores 0, 40 and 50 of the second class against the first: 1 - exp(-40) is 1 in double precision."""
    outputs = torch.tensor([[[0.0, 40.0], [0.0, 50.0], [0.0, 0.0], [0.0, -900.0], [0.0, 900.0]]])
    targets = torch.tensor([[0, 1, 0, 0, 1]])
    said = Predictions(outputs, targets, torch.ones(1, 5), torch.zeros(1, 5), targets, outputs.double().softmax(-1))
    assert auroc.stacked(said).tolist() == [1.0]
    assert average_precision.stacked(said).tolist() == [1.0]
