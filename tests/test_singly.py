"""Clients with much data are scored one after the other: the same numbers, without padding, copied only if need be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures import Execution, Federation, Run, Training
from plures.federation import Split
from plures.federation.inputs import Inputs
from plures.method import SGD
from plures.methods import METHODS
from plures.models import logistic, mlp
from plures.run import singly
from plures.tasks import Classification, Survival

SIZES = (700, 90, 300, 2)


def pictures(*, shuffled: bool, weighted: bool = False) -> Federation:
    """Four clients of very different sizes, whose rows follow each other or lie among those of others."""
    generator = np.random.default_rng(0)
    total = 2 * sum(SIZES)
    rows = torch.from_numpy(generator.permutation(total) if shuffled else np.arange(total)).split([*SIZES, *SIZES])
    train, test = Split.of(rows[:4]), Split.of(rows[4:])
    return Federation(
        name="pictures",
        task=Classification(tuple("abc")),
        inputs=torch.from_numpy(generator.normal(size=(total, 1, 14, 14)).astype(np.float32)),
        targets=torch.from_numpy(generator.integers(0, 3, total)),
        clients=tuple("ABCD"),
        splits={"train": train, "validation": test, "test": test},
        weights=torch.from_numpy(generator.uniform(0.5, 2, total).astype(np.float32)) if weighted else None,
    )


class Normal(nn.Sequential):
    """A network with running statistics, which belong to what a client predicts with."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(196, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


NETWORKS = {
    "logistic": lambda: logistic((1, 14, 14), 3),
    "perceptron": lambda: mlp((1, 14, 14), 3, hidden=(20,)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3)),
    "running statistics": Normal,
}


def by_hand(run: Run, module: nn.Module, client: int) -> tuple[float, float]:
    """Accuracy and loss of a client's network on its test rows, in plain PyTorch."""
    data = run.federation
    (leaves,) = run.deployed([client]).values()
    module.load_state_dict({name: values[0] for name, values in leaves.items()}, strict=False)
    module.eval()
    rows = data.splits["test"][client]
    with torch.no_grad():
        outputs = module(data.inputs[rows]).double()
    weight = torch.ones(len(rows), dtype=torch.float64) if data.weights is None else data.weights[rows].double()
    right = (outputs.argmax(1) == data.targets[rows]).double()
    losses = nn.functional.cross_entropy(outputs, data.targets[rows], reduction="none")
    return tuple(float((weight * values).sum() / weight.sum()) for values in (right, losses))  # type: ignore[return-value]


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("method", ["local", "fedavg"])
@pytest.mark.parametrize("network", NETWORKS)
def test_scores_are_those_of_each_network_on_its_own_rows(network, method, backend, monkeypatch):
    done = []
    inner = singly.taken
    monkeypatch.setattr(singly, "taken", lambda values, rows: done.append(len(rows)) or inner(values, rows))
    data = pictures(shuffled=method == "local", weighted=network == "perceptron")
    execution = Execution(backend, 4, False, "float32")
    run = Run(data, NETWORKS[network], METHODS[method](), Training(rounds=2, optimizer=SGD(0.1)), execution=execution)
    for _ in run.rounds():
        pass
    found = plures.score(run, "test")
    assert sum(done) == sum(SIZES)
    assert max(done) <= singly.MOST
    for client in range(4):
        accuracy, loss = by_hand(run, NETWORKS[network](), client)
        assert found.values["accuracy"][client] == pytest.approx(accuracy, abs=1e-9)
        assert found.values["loss"][client] == pytest.approx(loss, rel=1e-5)


def test_rows_that_follow_each_other_are_not_copied():
    values = torch.arange(20.0).view(10, 2)
    several = Inputs({"x": values, "mask": values > 3})
    view = singly.taken(values, torch.arange(3, 8))
    assert torch.equal(view, values[3:8])
    assert view.data_ptr() == values[3].data_ptr()
    assert singly.taken(several, torch.arange(3, 8))["x"].data_ptr() == values[3].data_ptr()
    for rows in ([3, 5, 4, 6], [3, 3, 4, 6], [6, 5, 4, 3], [2, 4]):
        copied = singly.taken(values, torch.tensor(rows))
        assert torch.equal(copied, values[rows])
        assert copied.data_ptr() != values[rows[0]].data_ptr()


def test_few_rows_and_what_is_more_than_a_network_are_left_to_stacks():
    def takes(data, method="fedavg"):
        run = Run(data, plures.default_model(data), METHODS[method](), Training(rounds=1))
        return singly.worthwhile(run.engine, range(4), "test")

    large = pictures(shuffled=False)
    assert takes(large)
    two = dataclasses.replace(large, task=Classification(tuple("ab")), targets=large.targets.clamp(max=1))
    assert not takes(two, "threshold")
    assert not takes(large, "knnper")
    few = {name: Split.of([rows[:1] for rows in split]) for name, split in large.splits.items()}
    assert not takes(dataclasses.replace(large, splits=few))
    times = torch.stack([torch.arange(1.0, len(large.inputs) + 1), torch.ones(len(large.inputs))], 1)
    assert not takes(dataclasses.replace(large, task=Survival(), targets=times))
