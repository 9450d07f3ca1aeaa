"""A loss belongs to the task: every method of the catalogue minimises it, weights of classes included."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from catalogued import away, trained
from newcomers import clients, linear
from plures import PluresError
from plures.federation import Federation
from plures.methods import METHODS, fedavg, local
from plures.run import Run, Training, onboard
from plures.run.fingerprint import DATA, difference, of_run
from plures.tasks import Classification, Regression, Task, from_dict, to_dict
from problems import quadratic, run, scalar

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

OWN_TERMS = {
    "depthfl": "pulls exits to each other's scores",
    "mocha": "has a ridge on the models",
    "fedhome": "rebuilds inputs",
    "fedproto": "pulls representations to prototypes",
    "fedsimclr": "contrasts views of inputs",
    "moon": "contrasts representations",
}
"""Methods that move without a loss, and what moves them."""
CURVED = ("ewc", "hierarchical_bayes")
"""Methods that need a loss whose curvature is known."""


def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(-1) * 0


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy, of which the second class counts three times."""
    return -outputs.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1) * torch.where(targets == 1, 3.0, 1.0)


def with_task(federation: Federation, **options: object) -> Federation:
    return replace(federation, task=replace(federation.task, **options))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_minimises_the_weighted_loss(name: str):
    """Weights give the same as that loss written by hand, and change what is learned."""
    seen, _ = clients()
    weighted, same = (with_task(seen, **options) for options in ({"class_weights": (1, 3)}, {"loss": by_hand}))
    done = trained(name, weighted)
    assert away(done, trained(name, seen)) > 1e-6
    if name in CURVED:
        with pytest.raises(PluresError, match=f"{name} needs the curvature of the loss.*use its default loss"):
            trained(name, same, 0)
    else:
        assert away(done, trained(name, same)) < 1e-9


@pytest.mark.parametrize("name", [name for name in METHODS if name not in {*OWN_TERMS, *CURVED}])
def test_where_the_loss_is_flat_nothing_moves(name: str):
    """So no method trains a model on a loss that is not the task's."""
    seen, _ = clients()
    flat = with_task(seen, loss=nothing)
    assert away(trained(name, flat), trained(name, flat, 0), "model/") < 1e-12


def test_weights_of_1_are_no_weights():
    assert Classification(("a", "b"), class_weights=(1, 1)) == Classification(("a", "b"))
    assert Classification(("a", "b"), class_weights={"b": 1.0}) == Classification(("a", "b"))


def test_a_weighted_loss_by_hand():
    """The mean divides by the number of examples, not by the sum of their weights; padding does not count."""
    task = Classification(("a", "b"), class_weights={"b": 3})
    outputs, targets = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, 1.0]]), torch.tensor([1, 0, 1])
    two = 3 * math.log(2), -math.log(0.75)
    assert task.losses(outputs, targets)[:2].tolist() == pytest.approx(two)
    mask = torch.tensor([1.0, 1.0, 0.0])
    assert float(task.mean_loss(outputs, targets, mask)) == pytest.approx(sum(two) / 2)
    assert float(task.mean_loss(outputs[:2], targets[:2])) == pytest.approx(sum(two) / 2)


def test_examples_of_a_class_without_weight_are_not_read():
    """Other inputs of such a class lead to the same model, bit for bit."""
    seen, _ = clients()
    inputs = torch.where((seen.targets == 1).unsqueeze(1), torch.full_like(seen.inputs, 7.0), seen.inputs)
    other = replace(seen, inputs=inputs)
    same = away(*(trained("fedavg", with_task(data, class_weights={"1": 0})) for data in (seen, other)))
    assert same == 0 < away(trained("fedavg", seen), trained("fedavg", other))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1.0}, r"class_weights: no 'c'; names are a, b"),
        ((1.0,), "1 weights for 2; give one for each of a, b"),
        ((1.0, -1.0), "-1 for 'b'; give finite numbers of at least 0"),
        ((math.nan, 1.0), "nan for 'a'; give finite"),
        ((0.0, 0.0), "all are 0, so nothing would be learned"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: object, message: str):
    with pytest.raises(PluresError, match=message):
        Classification(("a", "b"), class_weights=weights)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t), r"the loss of the classification gives \(\) for 2 examples.*\(2,\)"),
        (lambda o, t: o, r"gives \(2, 2\) for 2 examples: it must give one number for each"),
        (lambda o, t: 3.0, "gives float for 2 examples"),
        (lambda o, t: o @ t, "the loss of the classification: RuntimeError"),
    ],
)
def test_a_loss_of_the_wrong_shape_is_refused_before_anything_trains(loss, message: str):
    seen, _ = clients()
    with pytest.raises(PluresError, match=message):
        Run(with_task(seen, loss=loss), linear, fedavg(), Training(rounds=1))


def test_an_absolute_loss_by_hand():
    """One step of length 1/10 along the sign of the residual: ``|w|`` instead of the square."""
    task = Regression(1, loss=lambda o, t: (o - t).abs().sum(-1))
    federation = replace(quadratic(curvatures=(2.0, 2.0), optima=(1.0, -1.0), sizes=(2, 2)), task=task)
    done = run(local(), 1, federation=federation, model=scalar(0.0), steps=1)
    assert done.predictors([0, 1])["weight"].flatten().tolist() == pytest.approx([0.1, -0.1])


# --- tasks as data ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halved(Regression):
    """A user-defined task with an option."""

    factor: float = 0.5

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * super().losses(outputs, targets)


TASKS: list[Task] = [
    Classification(("a", "b")),
    Classification(("a", "b", "c"), class_weights={"c": 2.5}),
    Regression(3),
    Halved(2, factor=0.25),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_comes_back_from_what_is_told_of_it(task: Task):
    assert from_dict(to_dict(task), {f"{__name__}:Halved": Halved}.__getitem__) == task


def test_code_that_a_task_names_is_not_run():
    named = from_dict(to_dict(Classification(("a", "b"), loss=by_hand)))
    assert to_dict(named) == to_dict(Classification(("a", "b"), loss=by_hand))
    with pytest.raises(PluresError, match=f"the loss {__name__}:by_hand is code, which files only name"):
        named.losses(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(PluresError, match="Halved is code, which a file only names: give the task itself"):
        from_dict(to_dict(Halved(1)))


def test_a_run_is_another_one_with_other_weights_or_another_loss():
    seen, _ = clients()
    asked = {}
    for name, options in {"plain": {}, "weights": {"class_weights": (1, 3)}, "loss": {"loss": by_hand}}.items():
        asked[name] = of_run(Run(with_task(seen, **options), linear, fedavg(), Training(rounds=1)), "fedavg")
    for one in asked:
        for other in asked:
            assert (difference(asked[one], asked[other], [DATA]) is None) == (one == other), (one, other)


def test_newcomers_take_over_the_loss():
    """A newcomer learns with the weights of the run, although its own data does not have them."""
    seen, later = clients()
    done = trained("fedper", with_task(seen, class_weights=(1, 3)))
    guest = onboard(done, later, visits=2)
    assert guest.federation.task == done.federation.task
    weighted = onboard(done, with_task(later, class_weights=(1, 3)), visits=2)
    assert away(guest, weighted) == 0
    assert away(guest, onboard(trained("fedper", seen), later, visits=2)) > 1e-6


# --- tasks that are named ---------------------------------------------------------------------------------------


def test_a_task_is_completed_by_the_data():
    seen, _ = clients()
    assert seen.with_task(Classification(class_weights={"1": 2})).task.class_weights == (1.0, 2.0)
    assert quadratic().with_task(Halved()).task == Halved(1)
    for task, message in (
        (Classification(("no", "yes")), r"federation 'seven': classes: the task says \('no', 'yes'\), but the data"),
        (Regression(), "a regression cannot be learned from data that were read for a classification"),
        (Classification(class_weights={"2": 2}), "class_weights: no '2'"),
    ):
        with pytest.raises(PluresError, match=message):
            seen.with_task(task)
