"""Clients of different sizes side by side: functions that see padding give what each client gives alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plures.errors import PluresWarning
from plures.evaluate import score
from plures.federation import Split
from plures.method import (
    SGD,
    Assign,
    Calibration,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    gradient,
    squared_distance,
)
from plures.methods import ditto, fedavg, fedem, fedhome, fedproto, knnper, mapper, pfedme, scaffold, temperature
from plures.run import Execution, Run, Training
from plures.run.choose import uncompilable
from plures.run.steps import Stacked
from plures.tasks import Regression
from trajectories import LOOP, WIDE, everything_of, mlp, ragged

LACKING = uncompilable()
COMPILED = Execution("vmap", 7, True, "float64")


def trained(method, execution, model=mlp, federation=None, **options):
    options = {"rounds": 2, "batch_size": 8, "epochs": 2, "optimizer": SGD(0.2)} | options
    done = Run(federation or ragged(), model, method, Training(**options), execution=execution)
    done.losses = [(record.loss, record.objective) for record in done.rounds()]  # type: ignore[attr-defined]
    return done


def same(one: Run, other: Run) -> None:
    left, right = everything_of(one), everything_of(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=1e-12, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for split in ("validation", "test"):
        for metric, values in score(one, split).values.items():
            np.testing.assert_allclose(values, score(other, split).values[metric], atol=1e-12, err_msg=metric)


def by_itself(x, received, batch):
    return F.cross_entropy(batch.outputs(x.model), batch.targets)


def by_rows(x, received, batch):
    return (batch.losses(x.model) * batch.mask).sum() / len(batch.inputs)


def summed(x, received, batch):
    return batch.losses(x.model).sum()


def contrast(x, received, batch):
    """The task loss, plus the distance of outputs from their mean over the batch."""
    outputs = batch.outputs(x.model)
    return F.cross_entropy(outputs, batch.targets) - 0.1 * (outputs - outputs.mean(0)).square().mean()


def later(x, received, batch):
    """A term that is zero at the start, when the model is the received one."""
    away = squared_distance(x.model, received.model)
    return batch.loss(x.model) + away * batch.losses(x.model).mean()


def switched(x, received, batch):
    """A term that is zero unless weights are larger than at the start."""
    size = sum(t.detach().square().sum() for t in x.model.values())
    return batch.loss(x.model) + (size > 3.25) * batch.losses(x.model).mean()


def noisy(x, received, batch):
    """Random numbers whose shape depends on the batch."""
    weight = batch.uniform(2, len(batch.inputs))[1]
    return batch.mean(weight * batch.losses(x.model))


def two(x, received, batches):
    first, second = batches
    return first.loss(x.model) + F.cross_entropy(second.outputs(x.model), second.targets)


OBJECTIVES = {
    "average": Phase(objective=by_itself),
    "rows": Phase(objective=by_rows),
    "sum": Phase(objective=summed, lr=0.01),
    "contrast": Phase(objective=contrast),
    "later": Phase(objective=later),
    "switched": Phase(objective=switched),
    "random": Phase(objective=noisy, random=True),
    "two batches": Phase(objective=two, batches=2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_that_see_padding_train_as_each_client_alone(name):
    method = Method(schedule=(OBJECTIVES[name],))
    alone = trained(method, LOOP)
    with pytest.warns(
        PluresWarning, match=f"padding of batches changes the objective '{OBJECTIVES[name].objective.__name__}',"
    ):
        beside = trained(method, WIDE)
    same(alone, beside)


def test_by_hand():
    """One full-batch step of clients with 1, 2 and 3 examples: each its own mean, (1/n) sum 2 x (w x - y)."""
    data = ragged((1, 2, 3), features=(1,), classes=1)
    data = replace(
        data,
        task=Regression(1),
        inputs=torch.tensor([[1.0], [2.0], [-1.0], [3.0], [1.0], [0.5]], dtype=torch.float64),
        targets=torch.tensor([[2.0], [1.0], [1.0], [0.0], [2.0], [4.0]], dtype=torch.float64),
        splits=dict.fromkeys(("train", "validation", "test"), Split.of(list(torch.arange(6).split([1, 2, 3])))),
    )

    def line():
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def square(x, received, batch):
        return (batch.outputs(x.model) - batch.targets).square().mean()

    method = Method(layout={"model": Personal()}, schedule=(Phase(objective=square),))
    with pytest.warns(PluresWarning, match="square"):
        done = trained(method, WIDE, line, data, rounds=1, batch_size=None, epochs=1, optimizer=SGD(0.1))
    expected = [0.1 * 2 * 2.0, 0.1 * 2 * (2.0 - 1.0) / 2, 0.1 * 2 * (0.0 + 2.0 + 2.0) / 3]
    torch.testing.assert_close(done.predictors([0, 1, 2])["weight"].flatten(), torch.tensor(expected).double())


def test_a_computation_before_the_step_that_sees_padding():
    def before(x, received, batch):
        slope = gradient(x.model, replace(batch, weight=None))
        return {"slope": slope}

    def follow(x, received, batch):
        return torch.stack([(x.model[k] * x.slope[k]).sum() for k in x.model]).sum()

    method = Method(schedule=(Phase(objective=follow, before=before),))
    alone = trained(method, LOOP)
    with pytest.warns(PluresWarning, match="changes the objective 'follow' and 'before',"):
        same(alone, trained(method, WIDE))


def noting(update=None, measure=None, reads=(), split="train"):
    return Method(
        layout={"model": Shared(), "noted": Personal()},
        slots={"noted": lambda start: {"value": torch.zeros((), dtype=torch.float64)}},
        schedule=(Phase(), Assign(("noted",), update, measure, split=split, reads=reads)),
    )


@pytest.mark.parametrize("execution", [LOOP, WIDE, Execution("loop", 3, False, "float64")])
@pytest.mark.parametrize("sizes", [(37, 5, 13), (600, 5, 513)])
def test_a_measurement_and_an_update_that_average_by_themselves(execution, sizes):
    """The mean of the inputs over each client's examples, in batches of at most 512, is the mean of all of them."""
    data = ragged(sizes)
    expected = torch.stack([data.inputs[rows].sum(1).mean() for rows in data.splits["train"]])

    def keep(x, received, visit):
        return {"noted": visit.measured}

    def mean(x, received, batch):
        return {"value": batch.inputs.sum(1).mean()}

    def whole(x, received, visit):
        return {"noted": {"value": visit.examples["train"].inputs.sum(1).mean()}}

    for method, fn in ((noting(keep, mean), "measurement"), (noting(whole, reads=("train",)), "update")):
        padded = execution.backend == "vmap"  # one client after the other reads its own examples alone
        with pytest.warns(PluresWarning, match=f"the {fn} '(mean|whole)'") if padded else nullcontext():
            done = trained(method, execution, federation=data, rounds=1, epochs=0.1)
        noted = done.states([0, 1, 2])["noted"]["value"]
        torch.testing.assert_close(noted, expected, atol=1e-12, rtol=0)


def test_calibrations_and_predictors_that_see_padding():
    """A calibration with its own average, outputs that centre the client's memory, and outputs centred by batch."""

    def fit(x, outputs, batch):
        return {"shift": outputs.mean(0)}

    calibrated = Method(
        layout={"model": Shared(), "level": Personal()},
        slots={"level": lambda start: {"shift": torch.zeros(3, dtype=torch.float64)}},
        predict=Predict(calibrate=(Calibration("level", fit, lambda x, outputs: outputs - x.level["shift"]),)),
    )

    def from_memory(x, batch):
        return batch.outputs(x.model) + batch.own["train"].inputs.mean()

    def centred(x, batch):
        outputs = batch.outputs(x.model)
        return outputs - outputs.mean(0)

    def most(x, outputs):
        """The tenth of the examples with the highest score is called class 1."""
        return (outputs[:, 1] >= outputs[:, 1].quantile(0.9)).long()

    data = ragged()
    unlike = [
        ("update", calibrated),
        ("predictor", Method(predict=Predict(outputs=from_memory, reads=("train",)))),
        ("predictor", Method(predict=Predict(outputs=centred))),
        ("decision", Method(predict=Predict(decide=most))),
    ]
    for what, method in unlike:
        alone = scored(trained(method, LOOP, federation=data))
        with pytest.warns(PluresWarning, match=f"changes the {what} '"):
            beside = scored(trained(method, WIDE, federation=data))
        for metric, values in alone.items():
            np.testing.assert_allclose(values, beside[metric], atol=1e-12, err_msg=f"{what} {metric}")


def scored(run):
    return score(run, "test").values


class Centred(nn.Module):
    """A model whose examples interact, in training and in evaluation, without any layer known to do so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def test_a_model_whose_examples_interact():
    with pytest.warns(PluresWarning, match="changes the model 'Centred'"):
        beside = trained(fedavg(), WIDE, Centred)
    with pytest.warns(PluresWarning, match="changes the predictor 'Centred'"):
        same(trained(fedavg(), LOOP, Centred), beside)


@pytest.mark.skipif(LACKING is not None, reason=LACKING or "")
def test_compiled_steps_are_not_padded_either():
    method = Method(schedule=(Phase(objective=by_itself),))
    with pytest.warns(PluresWarning, match="by_itself"):
        same(trained(method, LOOP), trained(method, COMPILED))


@pytest.mark.parametrize(
    "method",
    [
        fedavg(),
        ditto(),
        scaffold("I"),
        pfedme(),
        fedem(),
        fedproto(),
        fedhome(),
        knnper(),
        mapper(residual=0.5),
        temperature(),
        Method(schedule=(Phase(objective=lambda x, received, batch: batch.mean(batch.losses(x.model))),)),
    ],
    ids=lambda method: "",
)
def test_functions_that_respect_the_weights_step_side_by_side(method, monkeypatch):
    """There is no warning (it would be an error here), and all clients of a step are trained in one call."""
    calls, step = [], Stacked._step
    monkeypatch.setattr(Stacked, "_step", lambda self, *args: calls.append(len(args[4][0])) or step(self, *args))
    score(trained(method, WIDE, rounds=1, epochs=1), "test")
    assert max(calls) == 7
