"""User-defined tasks that derive from those of plures: what a class overrides counts everywhere, or is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from newcomers import clients, linear
from plures import Classification, MultiLabel, PluresError, Regression, Task, score
from plures.federation import Federation, from_arrays
from plures.methods import METHODS, fedavg
from plures.run import Execution, Run, Training
from problems import quadratic

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
LOOP, STACKED = Execution("loop", 1, False, "float64"), Execution("vmap", 8, False, "float64")


@dataclass(frozen=True)
class Doubled(Classification):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().losses(outputs, targets)


@dataclass(frozen=True)
class Halved(Regression):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) / 2


@dataclass(frozen=True)
class Sharper(Classification):
    """Probabilities of doubled scores."""

    def expected(self, outputs: Tensor) -> Tensor:
        return (2 * outputs).softmax(-1)


@dataclass(frozen=True)
class Sharp(Sharper):
    """The same, with the methods that mixing needs."""

    def scores(self, expected: Tensor) -> Tensor:
        return expected.log() / 2


def trained(task: Classification, batch_size: int | None, execution: Execution, name: str = "fedavg") -> list[float]:
    seen, _ = clients()
    training = Training(rounds=1, batch_size=batch_size, steps=2)
    done = Run(seen.with_task(task), linear, METHODS[name](), training, execution=execution)
    done.step()
    return [float(t.square().sum()) for t in done.predictors([0]).values()]


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("execution", [LOOP, STACKED], ids=["one by one", "stacked"])
def test_a_loss_that_a_class_overrides_is_minimised_with_and_without_padding(batch_size, execution):
    """Twice the loss is the loss with weights of 2, in batches that are full and in those that are not."""
    outputs, targets = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    plain, own = Classification(("0", "1")), Doubled(("0", "1"))
    assert float(own.mean_loss(outputs, targets)) == pytest.approx(2 * float(plain.mean_loss(outputs, targets)))
    weighted = trained(Classification(class_weights=(2, 2)), batch_size, execution)
    assert trained(Doubled(), batch_size, execution) == pytest.approx(weighted, abs=1e-12)
    assert weighted != pytest.approx(trained(Classification(), batch_size, execution), abs=1e-6)


def test_what_a_loss_was_written_for_is_not_used_with_another_loss():
    """A curvature and closed forms belong to the loss of the same class or one above it."""
    assert (Regression(1).squared, Regression(1).curved, Classification(("a", "b")).curved) == (True, True, True)
    assert (Halved(1).squared, Halved(1).curved, Doubled(("a", "b")).curved) == (False, False, False)
    with pytest.raises(PluresError, match="ewc needs the curvature of the loss, which this regression does not define"):
        Run(quadratic().with_task(Halved()), lambda: torch.nn.Linear(1, 1), METHODS["ewc"](), Training(rounds=1))


def test_predictions_mix_by_the_probabilities_that_a_class_gives():
    one, two = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    weights, sharp = torch.tensor([0.25, 0.75]), Sharp(("a", "b"))
    mixed = sharp.mix([one, two], weights)
    wanted = 0.25 * (2 * one).softmax(-1) + 0.75 * (2 * two).softmax(-1)
    torch.testing.assert_close(sharp.expected(mixed), wanted)
    seen, _ = clients()
    with pytest.raises(PluresError, match="fedem averages predictions, which classification does not define"):
        Run(seen.with_task(Sharper()), linear, METHODS["fedem"](), Training(rounds=1))


# --- what is refused -----------------------------------------------------------------------------------------------


class Least(Task):
    """The minimum that a user-defined task declares; its mean loss is its metric."""

    kind = "least"
    outputs = 1

    def read(self, values, where):
        return self, torch.from_numpy(values.astype(np.float32)).view(-1, 1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().squeeze(-1)


def data(targets: object, task: object, **options: object) -> Federation:
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    return from_arrays(x, targets, np.repeat(["a", "b"], 20), task=task, **options)


def test_a_task_without_metrics_is_measured_by_its_loss():
    federation = data(np.arange(40) % 2, Least())
    done = Run(federation, lambda: torch.nn.Linear(1, 1), fedavg(), Training(rounds=1), execution=LOOP)
    rows = federation.splits["test"][0]
    outputs, _ = done.predict("a", federation.inputs[rows])
    loss = (outputs - federation.targets[rows]).square().mean()
    assert score(done, "test").values["loss"][0] == pytest.approx(float(loss))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"kind": None}, "the task Odd has no kind: a task of your own needs kind, outputs, read, losses"),
        ({"outputs": Task.outputs}, "the task Odd has no outputs"),
        ({"read": Task.read}, "the task Odd has no read"),
        ({"losses": Task.losses}, "the task Odd has no losses"),
    ],
)
def test_a_task_says_what_it_lacks_when_it_is_made(members, message):
    with pytest.raises(PluresError, match=message):
        type("Odd", (Least,), members)()


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda self, values, where: torch.zeros(40, 1), r"the task least: read must return the task and a tensor"),
        (lambda self, values, where: (self, values), r"the task least: read must return the task and a tensor"),
        (lambda self, values, where: {}["x"], r"the task least cannot read the targets: KeyError: 'x'"),
    ],
)
def test_a_task_that_reads_wrongly_is_told(read, message):
    with pytest.raises(PluresError, match=message):
        data(np.arange(40) % 2, type("Odd", (Least,), {"read": read})())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: (o.argmax(-1) != t).double(), "has no gradient, so nothing could be learned"),
        (lambda o, t: o.detach().sum(-1), "has no gradient, so nothing could be learned"),
        (lambda o, t: o.sum(-1) * float("nan"), r"is \[nan, nan\] for the first examples of an untrained network"),
    ],
)
def test_a_loss_that_cannot_be_learned_from_is_refused_before_anything_trains(loss, message):
    seen, _ = clients()
    with pytest.raises(PluresError, match=f"the loss of the classification {message}"):
        Run(seen.with_task(Classification(loss=loss)), linear, fedavg(), Training(rounds=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(loss=3), r"loss=3: give a function \(outputs, targets\) -> \(batch,\)"),
        (lambda: Classification(("a", "b"), ("x", "y")), "class_weights: 'x' for 'a' is not a number"),
        (lambda: Classification(("a", "b"), [[1, 2], [3, 4]]), r"class_weights: \[1, 2\] for 'a' is not a number"),
        (lambda: Classification(("a", "b"), 3), "class_weights=3: give a number for each of a, b"),
        (lambda: Classification(("a", "b"), "ab"), "class_weights='ab': give a number for each of a, b"),
        (lambda: Classification("ab"), r"classes='ab': give a list of names, \['ab'\]"),
        (lambda: MultiLabel("ab"), r"labels='ab': give a list of names, \['ab'\]"),
        (
            lambda: data(np.zeros((40, 2), int), None),
            'labels at once, 0 or 1 each, give task="multilabel"',
        ),
        (
            lambda: data(np.arange(40) % 2, None).with_task("classification"),
            "give a plures.Task",
        ),
        (lambda: data(np.arange(40) % 2, None).with_task(Classification), "give a plures.Task, such as"),
    ],
)
def test_what_a_task_cannot_be_made_of_is_told(make, message):
    with pytest.raises(PluresError, match=message):
        make()


def test_weights_of_numbered_classes_go_by_number():
    assert Classification(("0", "1"), {1: 2}).class_weights == (1.0, 2.0)
