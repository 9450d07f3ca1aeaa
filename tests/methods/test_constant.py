"""The least a method must beat: a constant, and FedAvg with one number of each client's own."""

from __future__ import annotations

import csv
import math
import time

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

import plures
from plures.federation.datasets.heart import FILE
from plures.federation.federation import Federation
from plures.federation.splits import Split
from plures.methods import constant, fedavg, intercept
from plures.metrics.accuracy import accuracy
from plures.metrics.balance import balanced_accuracy
from plures.run import Execution
from plures.tasks import (
    Classification,
    Counts,
    Huber,
    MultiLabel,
    NextToken,
    Quantile,
    Regression,
    Segmentation,
    Task,
)
from plures.tasks.shift import best_shift

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

TEN = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
DUMMIES = (("cp", 2), ("cp", 3), ("cp", 4), ("restecg", 1), ("restecg", 2))


def distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().squeeze(-1)


def event_rate(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.exp() - targets * outputs).squeeze(-1)


@pytest.mark.parametrize(
    ("task", "targets", "weight", "expected"),
    [
        (
            Classification(("a", "b", "c")),
            [0, 0, 0, 1],
            [1, 1, 1, 1],
            [math.log(4 / 7), math.log(2 / 7), math.log(1 / 7)],
        ),
        (Classification(("a", "b")), [0, 0, 1, 1], [1, 1, 5, 0], [math.log(3 / 9), math.log(6 / 9)]),
        (MultiLabel(("x", "y")), [[1, 0], [1, 0], [0, 0]], [1, 1, 1], [math.log(3 / 2), math.log(1 / 4)]),
        (Regression(1), [[1.0], [2.0], [6.0]], [1, 1, 1], [3.0]),
        (Regression(1), [[1.0], [2.0], [6.0]], [1, 3, 0], [1.75]),
        (Regression(1, loss=event_rate), [[1.0], [2.0], [6.0]], [1, 1, 1], [math.log(3)]),
        (Regression(1), [[1.0]], [0], [0.0]),
        (Regression(1, loss=distance), [[101.0], [102.0], [106.0]], [1, 1, 1], [102.0]),
        (Quantile(levels=(0.2, 0.5, 0.8)), [[1001.0], [1003.0], [1009.0]], [1, 1, 1], [1001.0, 1003.0, 1009.0]),
        (Quantile(levels=(0.1, 0.9)), [[-7.0], [0.5], [3.0]], [1, 3, 0], [-7.0, 0.5]),
        (Huber(1, delta=1.0), [[100.0], [101.0], [250.0]], [1, 1, 1], [101.0]),
        (Counts(1), [[1.0], [2.0], [6.0]], [1, 1, 1], [math.log(3)]),
    ],
)
def test_the_constant_of_a_task(task: Task, targets: list[object], weight: list[float], expected: list[float]):
    """Counts plus one of each class; the mean; medians and quantiles; of the Poisson loss, the log of the mean."""
    found = task.constant(torch.tensor(targets), torch.tensor(weight, dtype=torch.float32))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def two(targets: list[int], others: list[int]) -> plures.Federation:
    """Two clients whose inputs say nothing: all the same number of examples in every split."""
    every = [*targets, *others]
    return plures.from_arrays(
        np.linspace(-1, 1, len(every))[:, None], every, ["a"] * len(targets) + ["b"] * len(others), copies="allow"
    )


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_client_predicts_its_own_majority(backend):
    data = two([1] * 30 + [0] * 10, [0] * 40)
    training = plures.Training(rounds=1)
    run = plures.Run(data, plures.default_model(data), constant(), training, execution=Execution(backend, 2, False))
    record = run.step()
    found = plures.score(run, "test").values
    share = float((data.targets[data.splits["test"][0]] == 1).double().mean())
    assert found["accuracy"].tolist() == [share, 1.0]
    assert (record.bytes_up, record.bytes_down) == (0, 0)
    rows = data.splits["train"][0]
    positive = int((data.targets[rows] == 1).sum())
    said = run.predict("a", torch.zeros(1, 1))[0].softmax(-1)
    assert said[0, 1].item() == pytest.approx((positive + 1) / (len(rows) + 2))


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_an_intercept_meets_the_clients_own_share(backend):
    """Without a penalty, the mean probability is the class's share; the shared model stays FedAvg's, bit for bit."""
    data = two([1] * 30 + [0] * 10, [0] * 30 + [1] * 10)
    execution = Execution(backend, 2, False, "float64")
    training = plures.Training(rounds=3, optimizer=plures.SGD(0.5))
    own, plain = (
        plures.Run(data, plures.default_model(data), method, training, execution=execution, seed=0)
        for method in (intercept(prior=0.0), fedavg())
    )
    for run in (own, plain):
        for _ in run.rounds():
            pass
    shared = plain.deployed([0])["model"]
    assert shared
    for name, value in own.deployed([0])["model"].items():
        assert torch.equal(value, shared[name])
    for place, client in enumerate(data.clients):
        rows = data.splits["train"][place]
        said = own.predict(client, data.inputs[rows])[0].softmax(-1)
        share = float((data.targets[rows] == 1).double().mean())
        assert said[:, 1].mean().item() == pytest.approx(share, abs=1e-6)


def test_a_penalised_shift_by_hand():
    """Squared error ``n (b - m)^2 + prior/2 b^2`` has its least value at ``b = n m / (n + prior / 2)``."""
    errors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = best_shift(lambda b: (errors - b).square().sum() + 0.5 * b.square().sum(), torch.zeros(1).double(), True)
    assert found.item() == pytest.approx(4 / 2.5)


class Halved(NextToken):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) / 2


@pytest.mark.parametrize(
    ("task", "size", "newton"),
    [
        (Classification(("a", "b", "c"), class_weights=(1, 2, 5)), (), True),
        (Classification(("a", "b", "c"), smoothing=0.1), (), False),
        (NextToken(vocabulary=3, size=(4,)), (4,), True),
        (Halved(vocabulary=3, size=(4,)), (4,), False),
        (Segmentation(labels=("a", "b", "c"), size=(2, 2), label_weights=(1, 2, 5)), (2, 2), True),
    ],
)
def test_a_shift_costs_the_mean_loss_of_shifted_outputs(task: Task, size: tuple[int, ...], newton: bool):
    """With weights, an example of padding, and positions that do not count; far away, too."""
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(6, *task.shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1 if size else 0, 3, (6, *size), generator=generator)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    cost = task.shifted(outputs, targets, weight)
    begin = task.mean_loss(outputs, targets, weight) - cost(torch.zeros(3, dtype=torch.float64))
    for at in ((0.5, -1.0, 2.0), (3.0, 3.0, 3.0), (-900.0, 20.0, 900.0)):
        moved = outputs + torch.tensor(at, dtype=torch.float64).view(task.shift)
        expected = task.mean_loss(moved, targets, weight)
        torch.testing.assert_close(begin + cost(torch.tensor(at, dtype=torch.float64)), expected)
    assert task.smooth is newton


def test_an_intercept_of_a_vocabulary_is_fitted_in_seconds():
    """76 numbers over 37 texts of 80 characters: it took 25 s, because each second derivative was a pass over all."""
    generator, task = torch.Generator().manual_seed(0), NextToken(vocabulary=76, size=(80,))
    outputs = torch.randn(37, *task.shape, generator=generator, dtype=torch.float64)
    targets, weight = torch.randint(0, 20, (37, 80), generator=generator), torch.ones(37, dtype=torch.float64)
    begun, mean = time.process_time(), task.shifted(outputs, targets, weight)
    found = best_shift(lambda b: mean(b) + 0.01 * b.square().sum(), outputs.new_zeros(76), task.smooth)
    assert time.process_time() - begun < 5
    at = found.requires_grad_()
    (slope,) = torch.autograd.grad(task.mean_loss(outputs + at, targets, weight) + 0.01 * at.square().sum(), at)
    torch.testing.assert_close(slope, torch.zeros(76, dtype=torch.float64), atol=1e-8, rtol=0)


def flamby() -> plures.Federation:
    """The four hospitals as FLamby splits and scales them: 10 columns, complete rows, a third of each for testing."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "?" not in [row[column] for column in TEN]]
    parts, targets, names, splits, begun = [], [], ("cleveland", "hungarian", "switzerland", "va"), [], 0
    for name in names:
        own = [row for row in rows if row["hospital"] == name]
        x = np.array([[float(row[column]) for column in TEN] for row in own])
        y = np.array([int(row["num"]) > 0 for row in own])
        coded = [x[:, [TEN.index(column)]] == level for column, level in DUMMIES]
        x = np.hstack([x[:, [TEN.index(column) for column in TEN if column not in ("cp", "restecg")]], *coded])
        places = train_test_split(
            np.arange(len(y)), test_size=0.34, random_state=43, stratify=y if min(np.bincount(y)) > 1 else None
        )
        mean, std = x[places[0]].mean(0), x[places[0]].std(0, ddof=1)
        parts.append((x - mean) / np.where(std > 0, std, 1))
        targets.append(y)
        splits.append([torch.from_numpy(np.sort(place) + begun) for place in places])
        begun += len(y)
    train, test = (Split.of([pair[which] for pair in splits]) for which in (0, 1))
    return Federation(
        name="FLamby",
        task=Classification(("healthy", "disease")),
        inputs=torch.from_numpy(np.vstack(parts)).float(),
        targets=torch.from_numpy(np.concatenate(targets)).long(),
        clients=names,
        splits={"train": train, "validation": train, "test": test},
    )


def test_the_four_hospitals():
    """A constant is about as accurate as FedAvg, .72; an intercept gains ten points, and loses them balanced.

    Expected are means over five seeds, whose standard deviation is .012.
    """
    data = flamby()
    assert data.splits["test"].sizes.tolist() == [104, 89, 16, 45]
    training = plures.Training(rounds=15, steps=100, batch_size=4, optimizer=plures.SGD(0.00158))
    found = []
    for method in (constant(), fedavg(), intercept()):
        execution = Execution("vmap", 4, False)
        run = plures.Run(data, lambda: torch.nn.Linear(13, 2), method, training, seed=0, execution=execution)
        for _ in run.rounds():
            pass
        measured = plures.score(run, "test", metrics=[accuracy, balanced_accuracy]).values
        found.append([float(np.mean(values)) for values in measured.values()])
    assert found[0] == pytest.approx([0.7207, 0.5], abs=5e-5)
    assert found[1] == pytest.approx([0.729, 0.781], abs=0.03)
    assert found[2] == pytest.approx([0.826, 0.670], abs=0.03)


def test_the_intercept_of_a_median_is_the_median_of_what_is_left():
    """A loss without curvature, of which Newton's method alone finds nothing."""
    data = plures.from_arrays(
        np.zeros((60, 1)),
        np.r_[np.linspace(9, 11, 30), np.linspace(499, 501, 30)],
        ["a"] * 30 + ["b"] * 30,
        task=Quantile(levels=(0.5,)),
        standardize=False,
        standardize_targets=False,
        copies="allow",
    )
    run = plures.Run(data, plures.default_model(data), intercept(prior=0.0), plures.Training(rounds=1))
    run.step()
    for place, client in enumerate(data.clients):
        said = run.predict(client, torch.zeros(1, 1))[0].item()
        median = data.targets[data.splits["train"][place]].median().item()
        assert said == pytest.approx(median, abs=0.08)
