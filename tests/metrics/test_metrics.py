"""Metrics by hand, and what every metric must do: ignore order and padding, use weights, work on stacked clients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.evaluate.predictions import said
from plures.metrics import CLASSIFICATION, REGRESSION, Metric, Predictions, alone, mean
from plures.metrics.calibration import expected_error
from plures.tasks import Classification, Regression, Task

CLASSES, NUMBERS = Classification(("a", "b", "c")), Regression(2)
EVERY = [(CLASSES, metric) for metric in CLASSIFICATION] + [(NUMBERS, metric) for metric in REGRESSION]
each_metric = pytest.mark.parametrize(("task", "metric"), EVERY, ids=[f"{t.kind}-{m.name}" for t, m in EVERY])
NAN = math.nan


def drawn(task: Task, clients: int, examples: int, seed: int = 0) -> Predictions:
    """Predictions for random examples that all count; outputs are rounded, so that some are equal."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(clients, examples, task.outputs, generator=generator).mul(2).round().div(2)
    targets = torch.randn(clients, examples, task.outputs, generator=generator)
    if task.classes:
        targets = (torch.arange(clients * examples) % task.outputs).view(clients, examples)
    return said(task, outputs, targets, torch.ones(clients, examples))


def one(predictions: Predictions, client: int) -> Predictions:
    return predictions.map(lambda t: t[client])


# By hand --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EV1")
def test_61_calibration_error() -> None:
    confidence = torch.tensor([[0.95, 0.9, 0.6, 0.55, 0.85]], dtype=torch.float64)
    correct = torch.tensor([[1.0, 1, 0, 1, 0]], dtype=torch.float64)
    assert float(expected_error(torch.ones(1, 5), confidence, correct)) == pytest.approx(0.41)
    padded = torch.cat([confidence, torch.full((1, 3), 0.99)], 1), torch.cat([correct, torch.zeros(1, 3)], 1)
    assert float(expected_error(torch.tensor([[1.0] * 5 + [0.0] * 3]), *padded)) == pytest.approx(0.41)


def test_metrics_of_classes_by_hand() -> None:
    outputs = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [5.0, -5.0]]])
    task, weight = Classification(("a", "b")), torch.tensor([[1.0, 1.0, 0.0]])
    made = said(task, outputs, torch.tensor([[1, 1, 1]]), weight)
    found = {metric.name: float(metric.stacked(made)) for metric in task.metrics}
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.5**2) / 2)
    assert found["ece"] == pytest.approx((0.25 + 0.5) / 2)


def test_metrics_of_numbers_by_hand() -> None:
    outputs, targets = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    made = said(NUMBERS, outputs, targets, torch.ones(1, 2))
    found = {metric.name: float(metric.stacked(made)) for metric in NUMBERS.metrics}
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 4 + 0 + 4) / 4))
    assert found["mae"] == pytest.approx((1 + 2 + 0 + 2) / 4)
    assert found["loss"] == pytest.approx((1 + 4 + 0 + 4) / 2)


def test_a_mean_leaves_out_what_has_no_weight_and_has_none_of_nothing() -> None:
    weight, values = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, math.inf], [0.0] * 3])
    assert mean(weight, values).tolist() == pytest.approx([7 / 4, NAN], nan_ok=True)


# What every metric does -----------------------------------------------------------------------------------------


@each_metric
def test_order_does_not_matter(task: Task, metric: Metric) -> None:
    made = drawn(task, 1, 40)
    other = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert metric.of(one(made, 0).map(lambda t: t[other])) == pytest.approx(metric.of(one(made, 0)))


@each_metric
def test_clients_at_once_are_clients_one_by_one(task: Task, metric: Metric) -> None:
    made = drawn(task, 5, 12)
    assert metric.stacked(made).tolist() == pytest.approx([metric.of(one(made, i)) for i in range(5)])
    assert len({round(value, 9) for value in metric.stacked(made).tolist()}) > 1


@each_metric
@pytest.mark.parametrize("filling", [0.0, 7.0, NAN])
def test_padding_does_not_matter(task: Task, metric: Metric, filling: float) -> None:
    made = drawn(task, 3, 9)

    def padded(t: Tensor) -> Tensor:
        more = t[:, :4].clone() if not t.is_floating_point() else torch.full_like(t[:, :4], filling)
        return torch.cat([t, more], 1)

    wide = replace(made.map(padded), weight=torch.cat([made.weight, torch.zeros(3, 4)], 1))
    assert metric.stacked(wide).tolist() == metric.stacked(made).tolist()


@each_metric
def test_a_weight_is_a_number_of_copies(task: Task, metric: Metric) -> None:
    made = drawn(task, 1, 10)
    copies = torch.tensor([1, 2, 3, 1, 0, 2, 4, 1, 1, 2])
    heavy = replace(made, weight=copies.unsqueeze(0).float())
    repeated = one(made, 0).map(lambda t: t.repeat_interleave(copies, 0))
    assert float(metric.stacked(heavy)) == pytest.approx(metric.of(repeated))


@each_metric
def test_it_is_undefined_without_examples_alone(task: Task, metric: Metric) -> None:
    made = drawn(task, 2, 6)
    nobody = replace(made, weight=torch.stack([torch.ones(6), torch.zeros(6)]))
    first, second = metric.stacked(nobody).tolist()
    assert math.isfinite(first)
    assert math.isnan(second)


@each_metric
def test_a_model_that_diverged_has_the_worst_value_or_an_infinite_one(task: Task, metric: Metric) -> None:
    made = drawn(task, 1, 6)
    lost = said(task, torch.full_like(made.outputs, NAN), made.targets, made.weight)
    value = float(metric.stacked(lost))
    assert value in ((metric.range[0], -math.inf) if metric.higher else (metric.range[1], math.inf))
    assert metric.within(value) in metric.range


@each_metric
def test_values_lie_in_the_declared_range(task: Task, metric: Metric) -> None:
    values = [metric.of(one(drawn(task, 1, examples, seed), 0)) for seed in range(20) for examples in (3, 5, 30)]
    assert all(metric.within(value) == value for value in values)


# User-defined metrics -------------------------------------------------------------------------------------------------


def test_a_function_of_one_client_gets_its_examples_and_no_padding() -> None:
    seen = []

    def median(losses: Tensor) -> float:
        seen.append(len(losses))
        return float(losses.median())

    own = Metric("median_loss", "median loss", lambda predictions: predictions.losses, alone(median))
    made = drawn(CLASSES, 3, 5)
    weight = torch.tensor([[1.0] * 5, [1.0, 0, 1, 1, 0], [0.0] * 5])
    found = own.stacked(replace(made, weight=weight)).tolist()
    by_hand = [float(made.losses[0].median()), float(made.losses[1][[0, 2, 3]].median()), NAN]
    assert found == pytest.approx(by_hand, nan_ok=True)
    assert seen == [5, 3]


def test_a_value_is_told_within_the_range() -> None:
    accuracy, loss = CLASSIFICATION[0], CLASSIFICATION[1]
    assert (accuracy.within(0.25), loss.within(math.inf), accuracy.within(NAN)) == (0.25, 1e12, None)


def test_a_metric_that_needs_probabilities_says_so_where_there_are_none() -> None:
    brier = next(metric for metric in CLASSIFICATION if metric.name == "brier")
    with pytest.raises(PluresError, match="this task has no probabilities"):
        brier.stacked(drawn(NUMBERS, 1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "top 2"}, "metric 'top 2': give it a name"), ({"range": (1.0, 1.0)}, "metric 'own': range")],
)
def test_what_cannot_be_a_metric_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PluresError, match=message):
        Metric(**{"name": "own", "title": "own", "each": lambda p: p.losses, **options})  # type: ignore[arg-type]


# Wrongly written metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("each", "returned"),
    [
        (lambda p: p.losses.mean(), r"a tensor of shape \(\)"),
        (lambda p: p.losses.flatten(), r"a tensor of shape \(8,\)"),
        (lambda p: (p.losses, p.losses[:, :2]), r"a tensor of shape \(2, 2\)"),
        (lambda p: 3, "3"),
        (lambda p: [p.losses, p.losses], "list"),
    ],
)
def test_what_each_returns_has_a_place_for_every_example(each: Callable[..., Any], returned: str) -> None:
    """A mean over too many axes would be the same number for all clients, with padding included."""
    wrong = Metric("mine", "mine", each)
    with pytest.raises(
        PluresError, match=f"metric 'mine': each\\(predictions\\) returned .*{returned}.* for 2 clients wi"
    ):
        wrong.stacked(drawn(CLASSES, 2, 4))


@pytest.mark.parametrize(
    ("value", "returned"),
    [
        (lambda weight, losses: 0.5, "0.5"),
        (lambda weight, losses: losses.mean(), r"a tensor of shape \(\)"),
        (lambda weight, losses: losses, r"a tensor of shape \(2, 4\)"),
        (lambda weight, losses: torch.zeros(3), r"a tensor of shape \(3,\)"),
    ],
)
def test_a_value_is_one_number_per_client(value: Callable[..., Any], returned: str) -> None:
    """More numbers than clients in one chunk would be given to the clients of the next."""
    wrong = Metric("mine", "mine", lambda p: p.losses, value)
    with pytest.raises(PluresError, match=f"metric 'mine': value\\(weight, ...\\) returned {returned} for 2 clients"):
        wrong.stacked(drawn(CLASSES, 2, 4))
