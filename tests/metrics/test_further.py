"""Metrics chosen by name: by hand, and compared with scikit-learn."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

import plures
from plures import PluresError
from plures.evaluate.own import find_metric
from plures.evaluate.predictions import said
from plures.methods.threshold import best_threshold, utilities
from plures.metrics import AMOUNTS, SEVERAL_CLASSES, STEPS, TIMES, TWO_CLASSES, Metric, Predictions, liked_items
from plures.metrics.auroc import auroc
from plures.metrics.average_precision import average_precision
from plures.tasks import Classification, Regression
from scored import binary

TRUE, SCORES = [1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.7, 0.2]


def two(name: str) -> Metric:
    found = TWO_CLASSES.find(name)
    assert found is not None
    return found


def decided(true: list[int], claimed: list[int], classes: int = 3) -> Predictions:
    """One client's predictions with these decisions."""
    outputs = 5.0 * torch.nn.functional.one_hot(torch.tensor(claimed), classes)
    return said(Classification(tuple("abcdef"[:classes])), outputs, torch.tensor(true), torch.ones(len(true)))


def numbers(truth: list[float], guess: list[float]) -> Predictions:
    columns = (torch.tensor(values).unsqueeze(1) for values in (guess, truth))
    return said(Regression(1), *columns, torch.ones(len(truth)))


# By hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EV2")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ks", 1 / 3),
        ("sensitivity", 2 / 3),
        ("specificity", 0.0),
        ("precision", 0.5),
        ("positive_f1", 4 / 7),
        ("mcc", -0.4082482905),
    ],
)
def test_v1_two_classes_with_a_tie(name: str, value: float) -> None:
    """Of the three of the second class two are above one half, of the two of the first class none is below."""
    assert two(name).of(binary(TRUE, SCORES)) == pytest.approx(value)


@pytest.mark.oracle("EV3")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("micro_f1", 0.6),
        ("weighted_f1", 0.5904762),
        ("kappa", 0.4117647),
        ("quadratic_kappa", 0.2857143),
        ("mcc", 0.4308202),
    ],
)
def test_v2_three_classes(name: str, value: float) -> None:
    metric = SEVERAL_CLASSES.find(name)
    assert metric is not None
    made = decided([0, 0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 2, 1, 1, 2, 2, 0, 1])
    assert metric.of(made) == pytest.approx(value)


@pytest.mark.oracle("EV4")
def test_v4_the_mean_of_clients_f1_is_not_that_of_summed_counts() -> None:
    """A finds one of two; B finds its eight and claims two more: 2/3 and 8/9, together 18/21."""
    first, second = binary([1, 1], [0.9, 0.1]), binary([1] * 8 + [0] * 2, [0.9] * 10)
    f1 = two("positive_f1")
    assert (f1.of(first), f1.of(second)) == (pytest.approx(2 / 3), pytest.approx(8 / 9))
    assert f1.of(first.joined(second)) == pytest.approx(6 / 7)


V11 = [1, 1, 0, 1, 0, 0, 0, 0, 1, 0]


@pytest.mark.oracle("EV6")
def test_v11_lift_and_gain_of_the_top_fifth() -> None:
    """Both of the two highest scores of ten are among the four that are sought."""
    made = binary(V11, [0.95 - 0.09 * place for place in range(10)])
    assert two("gain_20").of(made) == pytest.approx(0.5)
    assert two("lift_20").of(made) == pytest.approx(2.5)
    assert two("ks").of(made) == pytest.approx(0.5833333)


@pytest.mark.oracle("EV11")
def test_v9_points_of_curves_and_the_threshold_that_reaches_them() -> None:
    """Four positive of 14, by falling scores P N P P N N N N P N N N N N; the third positive has .6."""
    true = [1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05]
    found = binary(true, scores)
    assert two("sensitivity_at_specificity_90").of(found) == 0.75
    assert two("recall_at_fpr_5").of(found) == 0.25
    assert auroc.of(found) == pytest.approx(0.825)
    assert average_precision.of(found) == pytest.approx(0.7152778, abs=1e-7)
    labels, weight = torch.tensor(true).double(), torch.ones(14).double()
    rule = utilities(1.0, 1.0, 0.75, alarms=0.1)
    for utility in (
        "recall",
        "specificity",
    ):  # with a tenth of false alarms; with 3 of 4 found
        chosen = float(best_threshold(torch.tensor(scores).double(), labels, weight, rule[utility], 0.5))
        claimed = torch.tensor(scores) > chosen
        assert claimed.tolist() == [True] * 4 + [False] * 10


def test_a_border_within_ties_counts_in_part() -> None:
    """Three of four examples tie at the top, one of them sought: a half of all is two thirds of those three."""
    made = binary([1, 0, 0, 1], [0.9, 0.9, 0.9, 0.1])
    assert two("gain_50").of(made) == pytest.approx(0.5 * 2 / 3)


def test_points_of_curves_by_hand() -> None:
    """Thresholds at .9, .8, .6, .3: (true, false positive rate) (1/2, 0), (1/2, 1/3), (1, 2/3), (1, 1)."""
    made = binary([1, 0, 1, 0, 0], [0.9, 0.8, 0.6, 0.6, 0.3])
    assert two("sensitivity_at_specificity_90").of(made) == 0.5
    assert two("sensitivity_at_specificity_33").of(made) == 1.0
    assert two("recall_at_fpr_33").of(made) == 0.5
    assert two("recall_at_fpr_34").of(made) == 0.5
    assert two("recall_at_fpr_67").of(made) == 1.0
    assert two("specificity_at_sensitivity_60").of(made) == pytest.approx(1 / 3)
    assert two("specificity_at_sensitivity_50").of(made) == 1.0
    assert two("recall_at_precision_99").of(made) == 0.5
    assert two("recall_at_precision_50").of(made) == 1.0


def test_nothing_precise_enough_finds_nothing() -> None:
    assert two("recall_at_precision_90").of(binary([0, 1, 0], [0.9, 0.5, 0.5])) == 0.0


@pytest.mark.oracle("EV6")
def test_v11_the_nasa_score_of_late_and_early_predictions() -> None:
    made = numbers([50.0] * 4, [37.0, 60.0, 45.0, 55.0])
    score, mean = AMOUNTS.find("nasa_score"), AMOUNTS.find("mean_nasa_score")
    assert score is not None
    assert mean is not None
    expected = [1.718282, 1.718282, 0.469049, 0.648721]
    assert score.of(made) == pytest.approx(sum(expected), rel=1e-6)
    assert mean.of(made) == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_percentages_leave_out_a_truth_of_zero() -> None:
    mape = AMOUNTS.find("mape")
    assert mape is not None
    assert mape.of(numbers([2.0, 0.0, -4.0], [3.0, 7.0, -3.0])) == pytest.approx((0.5 + 0.25) / 2)
    assert math.isnan(mape.of(numbers([0.0], [1.0])))


def test_top_two_of_three_and_ties_go_to_the_earlier_class() -> None:
    top = SEVERAL_CLASSES.find("top_2")
    assert top is not None
    outputs, true = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([1, 2, 2])
    made = said(Classification(("a", "b", "c")), outputs, true, torch.ones(3))
    assert top.of(made) == pytest.approx(1 / 3)


# Where they are undefined, and models that diverged ---------------------------------------------------------------


@pytest.mark.oracle("EV5")
@pytest.mark.parametrize(
    ("name", "true"),
    [("sensitivity", 0), ("specificity", 1), ("precision", 0), ("mcc", 0), ("ks", 1), ("recall_at_fpr_5", 0)],
)
def test_v5_one_class_alone_has_no_value(name: str, true: int) -> None:
    assert math.isnan(two(name).of(binary([true] * 3, [0.1, 0.2, 0.3])))


@pytest.mark.parametrize("name", ["sensitivity", "specificity", "precision", "ks", "gain_50", "mcc", "kappa"])
def test_outputs_that_are_not_finite_are_wrong(name: str) -> None:
    """Nothing is right: no share is above 0, no correlation either."""
    task, true = Classification(("no", "yes")), torch.tensor([0, 1, 0, 1])
    made = said(task, torch.full((4, 2), math.nan), true, torch.ones(4))
    assert two(name).of(made) <= 0.0


# Compared with scikit-learn ------------------------------------------------------------------------------------------

SKLEARN = {
    "micro_f1": lambda y, p, w: sklearn.f1_score(y, p, average="micro", sample_weight=w),
    "weighted_f1": lambda y, p, w: sklearn.f1_score(y, p, average="weighted", sample_weight=w),
    "mcc": lambda y, p, w: sklearn.matthews_corrcoef(y, p, sample_weight=w),
    "kappa": lambda y, p, w: sklearn.cohen_kappa_score(y, p, sample_weight=w),
    "quadratic_kappa": lambda y, p, w: sklearn.cohen_kappa_score(y, p, weights="quadratic", sample_weight=w),
}


@pytest.mark.parametrize("name", SKLEARN)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_agreement_is_that_of_scikit_learn(name: str, seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    true = np.r_[np.arange(classes), generator.integers(0, classes, 20)]
    outputs = generator.normal(size=(len(true), classes))
    outputs[:classes] = np.eye(classes) * 9
    weight = generator.integers(1, 4, len(true)).astype(float)
    task = Classification(tuple(map(str, range(classes))))
    made = said(task, *map(torch.from_numpy, (outputs, true, weight)))
    metric = SEVERAL_CLASSES.find(name)
    assert metric is not None
    assert metric.of(made) == pytest.approx(SKLEARN[name](true, outputs.argmax(1), weight), abs=1e-12)


@given(seed=st.integers(0, 10_000), share=st.sampled_from([50, 80, 90, 95]))
def test_points_of_curves_are_those_of_scikit_learn(seed: int, share: int) -> None:
    generator = np.random.default_rng(seed)
    true, scores = np.r_[0, 1, generator.integers(0, 2, 30)], generator.integers(1, 12, 32) / 13
    made = binary(true.tolist(), scores.tolist())
    alarms, found, _ = sklearn.roc_curve(true, scores, drop_intermediate=False)
    precise, recall, _ = sklearn.precision_recall_curve(true, scores)
    least = share / 100
    assert two("ks").of(made) == pytest.approx((found - alarms).max())
    at_specificity = two(f"sensitivity_at_specificity_{share}").of(made)
    assert at_specificity == pytest.approx(found[1 - alarms >= least - 1e-9].max())
    at_sensitivity = two(f"specificity_at_sensitivity_{share}").of(made)
    assert at_sensitivity == pytest.approx(1 - alarms[found >= least - 1e-9].min())
    at_precision = two(f"recall_at_precision_{share}").of(made)
    assert at_precision == pytest.approx(recall[:-1][precise[:-1] >= least - 1e-9].max(initial=0.0))


@given(seed=st.integers(0, 10_000), most=st.integers(1, 4))
def test_top_k_is_that_of_scikit_learn(seed: int, most: int) -> None:
    generator = np.random.default_rng(seed)
    outputs, true = generator.normal(size=(30, 5)), generator.integers(0, 5, 30)
    made = said(Classification(tuple("abcde")), *map(torch.from_numpy, (outputs, true)), torch.ones(30))
    metric = SEVERAL_CLASSES.find(f"top_{most}")
    assert metric is not None
    expected = sklearn.top_k_accuracy_score(true, outputs, k=most, labels=range(5))
    assert metric.of(made) == pytest.approx(expected)


@given(seed=st.integers(0, 10_000), share=st.sampled_from([10, 50, 90]))
def test_errors_are_those_of_scikit_learn(seed: int, share: int) -> None:
    generator = np.random.default_rng(seed)
    truth, guess = generator.uniform(1, 9, 20), generator.normal(size=20)
    made = numbers(truth.tolist(), guess.tolist())
    mape, pinball = AMOUNTS.find("mape"), AMOUNTS.find(f"pinball_{share}")
    assert mape is not None
    assert pinball is not None
    assert mape.of(made) == pytest.approx(sklearn.mean_absolute_percentage_error(truth, guess), rel=1e-5)
    assert pinball.of(made) == pytest.approx(sklearn.mean_pinball_loss(truth, guess, alpha=share / 100), rel=1e-5)


# Stacked clients, and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*(m.name for m in TWO_CLASSES.named), "gain_20", "lift_20", "recall_at_fpr_5", "top_1"]
)
def test_stacked_and_padded_clients_have_what_they_have_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, true = torch.randn(2, 6, 2, generator=generator), torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 0, 0]])
    weight = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])
    task = Classification(("no", "yes"))
    together = two(name).stacked(said(task, outputs, true, weight))
    for client, size in enumerate((6, 4)):
        own = said(task, outputs[client, :size], true[client, :size], torch.ones(size))
        assert float(together[client]) == pytest.approx(two(name).of(own), nan_ok=True)


def test_a_metric_of_the_task_goes_before_a_further_one_of_its_name() -> None:
    own = Metric("mcc", "my own", lambda predictions: predictions.losses)
    heart = plures.load("heart")
    data = replace(heart, task=replace(heart.task, metrics=(*heart.task.metrics, own)))
    assert find_metric("mcc", data) is own
    assert data.judged_by(find_metric("mcc", data)).metrics[0] is own


def test_names_with_numbers_out_of_range_are_refused() -> None:
    for name in ("gain_0", "recall_at_fpr_100", "top_0"):
        with pytest.raises(PluresError, match=rf"metric {name}: give a"):
            TWO_CLASSES.find(name)
    with pytest.raises(PluresError, match="metric pinball_100: give a quantile"):
        AMOUNTS.find("pinball_100")


def test_the_guide_lists_all_of_them() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "report.md").read_text(encoding="utf-8")
    table = guide.partition("| for | metrics |")[2].partition("\n\n")[0]
    catalogues = (SEVERAL_CLASSES, TWO_CLASSES, AMOUNTS, STEPS, TIMES, liked_items(4.0))
    assert set(re.findall(r"`(\w+)`", table)) == {name for catalogue in catalogues for name in catalogue.names}


def test_a_federation_is_judged_by_what_fits_its_task() -> None:
    heart = plures.load("heart")
    assert heart.judged_by("recall_at_fpr_5").metrics[0].name == "recall_at_fpr_5"
    assert find_metric("mcc", heart).name == "mcc"
    with pytest.raises(PluresError, match=r"no metric 'sensitivity' for classification in 6 classes; "):
        plures.load("har").judged_by("sensitivity")
    with pytest.raises(PluresError, match=r"no metric 'sensitivty'; did you mean 'sensitivity'\?"):
        find_metric("sensitivty", heart)
