"""The kinds of tasks: losses and metrics by hand or by scikit-learn, and what their data must not hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn
from torch import Tensor, nn

import plures
from plures import PluresError
from plures.federation import Federation, from_arrays
from plures.methods import METHODS
from plures.metrics import Metric, Predictions
from plures.run import Execution, Run, Training
from plures.run.predict import said
from plures.tasks import (
    Binary,
    Classification,
    Counts,
    Forecast,
    Huber,
    MultiLabel,
    NextToken,
    Quantile,
    Ratings,
    Segmentation,
    Task,
    from_dict,
    to_dict,
)

LOOP, STACKED = Execution("loop", 1, False, "float64"), Execution("vmap", 3, False, "float64")


def metric(task: Task, name: str) -> Metric:
    found = task.further.find(name) or next(one for one in task.metrics if one.name == name)
    assert isinstance(found, Metric)
    return found


def made(task: Task, outputs: object, targets: object, weight: object = None) -> Predictions:
    """One client's predictions."""
    given, true = torch.as_tensor(outputs), torch.as_tensor(targets)
    return said(task, given, true, torch.ones(len(true)) if weight is None else torch.as_tensor(weight))


def data(targets: object, task: object, features: tuple[int, ...] = (2,), **options: object) -> Federation:
    """Three clients of different sizes."""
    inputs = np.random.default_rng(0).normal(size=(60, *features))
    return from_arrays(inputs, targets, np.repeat(["a", "b", "c"], [15, 20, 25]), task=task, seed=0, **options)


def trained(federation: Federation, model: object, execution: Execution, name: str = "fedavg") -> list[Tensor]:
    done = Run(federation, model, METHODS[name](), Training(rounds=1, batch_size=8, steps=2), execution=execution)
    done.step()
    return list(done.predictors([0, 1, 2]).values())


# --- two classes, one output --------------------------------------------------------------------------------------

ODDS = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
TRUE = torch.tensor([1, 1, 0])


@pytest.mark.parametrize("options", [{}, {"class_weights": (1, 3)}, {"focal": 2.0}, {"smoothing": 0.2}])
def test_one_output_is_two_of_which_the_first_is_0(options: dict[str, object]) -> None:
    """Losses, probabilities and decisions are those of two outputs, and so is what a mixture predicts."""
    one, two = Binary(("no", "yes"), **options), Classification(("no", "yes"), **options)
    both = torch.cat([torch.zeros_like(ODDS), ODDS], -1)
    torch.testing.assert_close(one.losses(ODDS, TRUE), two.losses(both, TRUE))
    torch.testing.assert_close(one.expected(ODDS), two.expected(both))
    assert one.decide(ODDS).tolist() == two.decide(both).tolist() == [1, 0, 1]
    mixed = one.mix([ODDS, -2 * ODDS], torch.tensor([0.25, 0.75], dtype=torch.float64))
    by_two = two.mix([both, torch.cat([torch.zeros_like(ODDS), -2 * ODDS], -1)], torch.tensor([0.25, 0.75]).double())
    torch.testing.assert_close(one.expected(mixed), two.expected(by_two))
    for name in ("accuracy", "auroc", "brier", "sensitivity"):
        expected = metric(two, name).of(made(two, both, TRUE))
        assert metric(one, name).of(made(one, ODDS, TRUE)) == pytest.approx(expected)


def test_the_curvature_of_one_output_by_hand() -> None:
    """Expected over the classes: w1 p (1 - p)^2 + w0 (1 - p) p^2."""
    _, found = Binary(("no", "yes"), class_weights=(2, 5)).curvature(ODDS)
    p = ODDS.sigmoid()
    torch.testing.assert_close(found, 5 * p * (1 - p) ** 2 + 2 * (1 - p) * p**2)


def test_data_of_two_classes_may_be_learned_with_one_output() -> None:
    heart = plures.load("heart").with_task(Binary(class_weights={"disease": 2}))
    assert (heart.task.outputs, heart.task.names) == (1, ("healthy", "disease"))
    assert heart.describe().clients[0].labels == (164, 139)
    done = Run(heart, plures.default_model(heart), METHODS["threshold"](), Training(rounds=1))
    done.step()
    outputs, classes = done.predict("va", heart.inputs[:3])
    assert (outputs.shape, classes.shape) == ((3, 1), (3,))
    with pytest.raises(PluresError, match="fedproto needs an output for each class, but binary has one"):
        Run(heart, plures.default_model(heart), METHODS["fedproto"](), Training(rounds=1))
    with pytest.raises(PluresError, match='binary has two classes, but there are 3: 0, 1, 2; give task="classif'):
        data(np.arange(60) % 3, "binary")


# --- losses of classes --------------------------------------------------------------------------------------------


def test_focal_loss_and_smoothing_by_hand() -> None:
    """With p = 1/4 of the true class: (3/4)^2 log 4; smoothed by 1/5: 0.9 log 4 + 0.1 log(4/3)."""
    outputs, true = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64), torch.tensor([1])
    focal, smooth = Classification(("a", "b"), focal=2), Classification(("a", "b"), smoothing=0.2)
    assert float(focal.mean_loss(outputs, true)) == pytest.approx(0.75**2 * math.log(4))
    assert float(smooth.mean_loss(outputs, true)) == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))
    several = MultiLabel(("x", "y"), focal=1)
    found = several.losses(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 1.0]]))
    assert float(found) == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(4 / 3)) / 2)
    assert not any(task.curved for task in (focal, smooth, several))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(focal=-1), "classification: focal=-1; give a number from 0 to below 100"),
        (lambda: Binary(smoothing=1.0), "binary: smoothing=1.0; give a number from 0 to below 1"),
        (lambda: Classification(focal=1, loss=F.cross_entropy), "focal=1, but loss= replaces the loss"),
        (
            lambda: MultiLabel(("a", "b"), (1, 2), loss=F.mse_loss),
            "positive_weights=.1, 2., but loss= replaces the loss",
        ),
        (
            lambda: Segmentation(labels=("a", "b"), label_weights=(1, 2), loss=F.mse_loss),
            "label_weights=.1, 2., but loss= replaces the loss",
        ),
        (lambda: Huber(delta=2.0, loss=F.mse_loss), "huber: delta=2.0, but loss= replaces the loss"),
        (lambda: Huber(delta=0), "huber: delta=0; give a number above 0"),
        (lambda: Quantile(levels=(0.9, 0.1)), "give numbers between 0 and 1 in increasing order"),
        (lambda: data(np.arange(60) - 5, "counts"), "client 'a', row 0: a count below 0"),
        (lambda: data(np.arange(60) / 10, "ratings", standardize_targets=True), "ratings have no scale"),
        (lambda: data(np.zeros((60, 2)), "quantile"), "quantile predicts one number, but targets have 2"),
        (lambda: data(np.arange(60), "segmentation"), "segmentation needs whole numbers, a label at every position"),
        (lambda: data(np.full((60, 3), -1), "next_token"), "next_token: no position has a label that counts"),
        (lambda: data(np.eye(60, 4, dtype=int), NextToken(vocabulary=1)), "client 'a', row 0: a label outside 0..0"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(PluresError, match=message):
        make()


# --- numbers ------------------------------------------------------------------------------------------------------


def test_counts_by_hand_and_by_scikit_learn() -> None:
    """At the logarithm of the mean count the slope is 0; the deviance is that of scikit-learn, weights included."""
    task, counts = Counts(1), torch.tensor([[0.0], [1.0], [5.0]])
    best = torch.full((3, 1), math.log(2.0), requires_grad=True)
    (slope,) = torch.autograd.grad(task.mean_loss(best, counts), best)
    assert slope.flatten().tolist() == pytest.approx([2 / 3, 1 / 3, -1])
    assert task.losses(best, counts).tolist() == pytest.approx([2 - n * math.log(2) for n in (0, 1, 5)])
    found = made(task, [[0.1], [0.7], [1.2]], counts, [1.0, 2.0, 0.5])
    expected = sklearn.mean_poisson_deviance([0, 1, 5], np.exp([0.1, 0.7, 1.2]), sample_weight=[1, 2, 0.5])
    assert metric(task, "poisson_deviance").of(found) == pytest.approx(expected)
    miss = np.abs(np.exp([0.1, 0.7, 1.2]) - [0, 1, 5]) @ np.array([1, 2, 0.5]) / 3.5
    assert metric(task, "mae").of(found) == pytest.approx(float(miss))


def test_a_rate_with_exposure_is_a_weighted_count() -> None:
    """Weight e and target n / e give the slope of ``e exp(f) - n f``."""
    output = torch.tensor([[0.3]], requires_grad=True)
    (slope,) = torch.autograd.grad((4 * Counts(1).losses(output, torch.tensor([[2.5]]))).sum(), output)
    assert float(slope) == pytest.approx(4 * math.exp(0.3) - 10, rel=1e-6)


def test_quantiles_by_hand_and_by_scikit_learn() -> None:
    task = Quantile(levels=(0.1, 0.6, 0.9))
    outputs, true = np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 4.0], [0.0, 0.5, 1.0]]), np.array([[1.5], [1.0], [4.0]])
    each = [sklearn.mean_pinball_loss(true[:, 0], outputs[:, k], alpha=a) for k, a in enumerate(task.levels)]
    found = made(task, outputs, true)
    assert metric(task, "loss").of(found) == pytest.approx(np.mean(each))
    assert metric(task, "coverage").of(found) == pytest.approx(2 / 3)
    assert metric(task, "mae").of(found) == pytest.approx((0.5 + 2 + 3.5) / 3)


def test_steps_of_a_forecast() -> None:
    """Errors 1, 3 at the first step and 0, 4 at the second."""
    task = Forecast(2)
    found = made(task, [[1.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
    assert metric(task, "rmse_step_1").of(found) == pytest.approx(math.sqrt(5))
    assert metric(task, "mae_step_2").of(found) == pytest.approx(2)
    assert metric(task, "rmse").of(found) == pytest.approx(math.sqrt((1 + 9 + 16) / 4))
    with pytest.raises(PluresError, match="there is no step 3: this forecast has 2"):
        metric(task, "rmse_step_3").of(found)


def test_ranked_items_by_hand_and_by_scikit_learn() -> None:
    task, draw = Ratings(1), np.random.default_rng(0)
    true, score = draw.integers(1, 6, 30).astype(float), draw.integers(0, 8, 30).astype(float)
    found = made(task, score[:, None], true[:, None])
    for k in (1, 5, 10, 50):
        assert metric(task, f"ndcg_{k}").of(found) == pytest.approx(sklearn.ndcg_score([true], [score], k=k))
    few = made(task, [[3.0], [2.0], [2.0], [1.0]], [[1.0], [5.0], [2.0], [4.0]])
    assert [metric(task, f"hit_{k}").of(few) for k in (1, 2, 3, 4)] == [0, 0.5, 1, 1]
    assert math.isnan(metric(Ratings(1, liked=5.5), "hit_2").of(few))


# --- a label at every position ------------------------------------------------------------------------------------

MASK = torch.tensor([[[1, 1], [0, -1]], [[0, 0], [0, 0]]])


def pictures(decided: Tensor) -> Tensor:
    """Outputs ``(examples, 2, height, width)`` that decide for these labels."""
    return 5.0 * F.one_hot(decided, 2).movedim(-1, 1).double()


@pytest.mark.oracle("EV9")
def test_v8_dice_and_iou() -> None:
    """One of two pixels is found: 2/3 and 1/2. A picture without the label in which none is found counts 1."""
    task = Segmentation(labels=("ground", "tree"), size=(2, 2))
    found = made(task, pictures(torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]]])), MASK)
    assert metric(task, "dice").of(found) == pytest.approx((2 / 3 + 1) / 2)
    assert metric(task, "iou").of(found) == pytest.approx((1 / 2 + 1) / 2)
    assert metric(task, "accuracy").of(found) == pytest.approx(6 / 7)


def test_pixels_that_do_not_count_change_nothing() -> None:
    """Whatever a network gives for them; and its loss is PyTorch's with an index to ignore, by picture."""
    task = Segmentation(labels=("ground", "tree"), size=(2, 2), label_weights={"tree": 3})
    outputs = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    other = torch.where(MASK.unsqueeze(1) < 0, 9.0, outputs)
    torch.testing.assert_close(task.losses(outputs, MASK), task.losses(other, MASK))
    each = F.cross_entropy(outputs, MASK, ignore_index=-1, reduction="none", weight=torch.tensor([1.0, 3]).double())
    torch.testing.assert_close(task.losses(outputs, MASK), each.flatten(1).sum(1) / torch.tensor([3, 4]))
    torch.testing.assert_close(task.scores(task.expected(outputs)).softmax(1), outputs.softmax(1))


def test_perplexity_counts_tokens() -> None:
    """Probabilities 1/2, 1/4 and, in the second text, 1/8: the geometric mean is 4."""
    chances = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [[0.125, 0.5, 0.375], [0.2, 0.2, 0.6]]])
    task = NextToken(vocabulary=3, size=(2,))
    found = made(task, chances.double().log(), torch.tensor([[0, 1], [0, -100]]))
    assert metric(task, "perplexity").of(found) == pytest.approx(4)
    assert metric(task, "accuracy").of(found) == pytest.approx(1 / 3)
    assert metric(task, "loss").of(found) == pytest.approx((math.log(2) + math.log(4) + 2 * math.log(8)) / 4)


def test_padding_that_the_data_name_does_not_count() -> None:
    federation = data(np.tile([1, 2, 0, 0], (60, 1)), NextToken(ignored=0))
    assert federation.targets[0].tolist() == [1, 2, -1, -1]
    assert (federation.task.outputs, federation.task.target) == (3, (4,))


def test_the_best_constant_of_positions_by_hand() -> None:
    """Pixels that count: five of the first label and two of the second, so shares (5 + 1) / 9 and (2 + 1) / 9."""
    task = Segmentation(labels=("ground", "tree"), size=(2, 2))
    found = task.expected(task.constant(MASK, torch.ones(2)).unsqueeze(0))
    torch.testing.assert_close(found, torch.tensor([6 / 9, 3 / 9], dtype=torch.float64).expand(1, 2, 2, 2))
    assert task.shift == (2, 1, 1)


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("name", ["fedavg", "fedem", "local"])
def test_pictures_train_alike_one_by_one_and_stacked(name: str) -> None:
    inputs = np.random.default_rng(1).normal(size=(60, 1, 4, 4))
    targets = (inputs[:, 0] > 0).astype(int)
    targets[::3, 0] = -1
    owners = np.repeat(["a", "b", "c"], [15, 20, 25])
    federation = from_arrays(inputs, targets, owners, task="segmentation", seed=0, dtype=torch.float64)
    one, two = (trained(federation, Pixels, execution, name) for execution in (LOOP, STACKED))
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


TASKS = [
    Binary(("a", "b"), focal=2.0),
    Counts(2),
    Huber(1, delta=0.5),
    Quantile(levels=(0.2, 0.8)),
    Ratings(1, liked=3.0),
    Segmentation(labels=("x", "y"), size=(2, 2), label_weights=(1, 2)),
    NextToken(vocabulary=5, size=(3,), ignored=0),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_comes_back_from_a_file(task: Task) -> None:
    assert from_dict(to_dict(task)) == task
