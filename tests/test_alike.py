"""If all clients are alike, a newcomer predicts what they predict, under every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from plures.federation import SPLITS, Federation, Split
from plures.methods import METHODS
from plures.models import with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Execution, Fixed, Run, onboard
from plures.tasks import Classification, Regression
from problems import run

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

FACTS = {"group": "one", "completeness": 1.0, "reliability": 1.0}


def alike(names: str, classes: bool) -> Federation:
    """Clients with the same rows: twice the input, 1 or -1; or, for the input 1, a class that three of four have."""
    count, clients = len(names), len(names) + 1
    inputs = torch.tensor([[1.0], [1.0 if classes else -1.0]], dtype=torch.float64).repeat(2, 1)
    targets = torch.tensor([0, 1, 1, 1]) if classes else 2 * inputs
    return Federation(
        name="alike",
        task=Classification(("no", "yes")) if classes else Regression(1),
        inputs=torch.cat([inputs] * clients),
        targets=torch.cat([targets] * clients),
        clients=tuple(names),
        splits=dict.fromkeys(SPLITS, Split.of(list(torch.arange(4 * count).view(count, 4)))),
        metadata={column: (value,) * count for column, value in FACTS.items()},
        public=torch.arange(4 * count, 4 * clients),
    )


def flat(outputs: int) -> nn.Module:
    return nn.Linear(1, outputs)


def deep(outputs: int) -> nn.Module:
    """A body and a head, without a nonlinearity."""
    return with_roles(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, outputs)), head="1")


def gated(outputs: int) -> nn.Module:
    """Squeeze-and-excitation on an image of one pixel."""
    return with_roles(
        nn.Sequential(nn.Unflatten(1, (1, 1, 1)), SqueezeExcitation(1), nn.Flatten(), nn.Linear(1, outputs)), se=("1",)
    )


@dataclass(frozen=True)
class Case:
    """How to train a method until all its clients have learned their data.

    Attributes:
        options: of the method.
        model: flat, deep, or gated.
        classes: whether there are classes, for methods that need them.
        rounds, steps, lr: of the training.
        tolerance: how far a prediction of 2, or logarithms of the probabilities 1/4 and 3/4, may be off.
        all_drawn: whether every client takes part; otherwise the last client is never drawn.
    """

    options: dict[str, Any] = field(default_factory=dict)
    model: Callable[[int], nn.Module] = flat
    classes: bool = False
    rounds: int = 6
    steps: int = 20
    lr: float = 0.2
    tolerance: float = 1e-6
    all_drawn: bool = False


CASES: dict[str, Case] = {
    **dict.fromkeys(("community", "fedbabu", "fedper", "lgfedavg"), Case(model=deep)),
    **dict.fromkeys(("moon", "fedsimclr", "fedala", "knnper"), Case(model=deep)),
    "lora": Case(model=deep, lr=0.1),
    "hetlora": Case({"ranks": (2,)}, model=deep, lr=0.1),
    **dict.fromkeys(("fjord", "heterofl"), Case({"rates": (0.5,)}, model=deep)),
    # Steps towards the consensus are of one length, however near it is.
    "fedmd": Case(tolerance=1e-4),
    "depthfl": Case({"rates": (1.0,)}, model=deep),
    "fedrep": Case({"head_steps": 30, "body_steps": 20}, model=deep, lr=0.1, rounds=10),
    **dict.fromkeys(("prior_shift", "temperature", "threshold"), Case(classes=True)),
    "fedhome": Case(model=deep, classes=True),
    **dict.fromkeys(("fedproto", "fedrod"), Case(model=deep, classes=True, lr=0.3, rounds=10)),
    "self_distillation": Case(model=deep, classes=True, lr=0.5, rounds=12),
    "apfl": Case(rounds=10),
    # A component of small weight learns slowly.
    "fedem": Case(rounds=10, tolerance=1e-3),
    "mrmtl": Case(rounds=15),
    "hierarchical_bayes": Case(rounds=15),
    "personal_moe": Case(rounds=15),
    # A newcomer's gate starts anew, and the flat ends of its sigmoid are slow.
    "personal_se": Case(model=gated, rounds=15, tolerance=5e-3),
    # The server's weight decay holds the embeddings back, each on its own side.
    "pfedhn": Case({"hidden": (), "lr": 0.02}, rounds=100, steps=5, lr=0.1, tolerance=0.02),
    # Weights of models and models descend together, and a newcomer's start where the product is flat.
    "apple": Case({"horizon": 3}, rounds=15, lr=0.1, tolerance=1e-3),
    # Maps and potentials circle around their saddle point for a long time.
    "fedot": Case(tolerance=1e-3),
    # The initial model stored for a client that is never drawn pulls the others.
    "l2gd": Case(rounds=60, all_drawn=True),
    "fedu": Case(all_drawn=True),
    "mocha": Case(rounds=20, all_drawn=True),
    "fedamp": Case(rounds=15, all_drawn=True),
}


def outputs(done: Run) -> torch.Tensor:
    """What every client predicts for the input 1, ``(clients, outputs)``; of classes, logarithms of probabilities."""
    clients = list(range(len(done.federation)))
    own = {name: done.engine.whole(clients, name) for name in done.bound.method.predictor.reads}
    ones = torch.ones(len(clients), 1, 1, dtype=torch.float64)
    found = done.engine.forward(done.deployed(clients), ones, own, ones.squeeze(2)).squeeze(1)
    return found.log_softmax(-1) if done.federation.task.kind == "classification" else found


@pytest.mark.parametrize("name", METHODS)
def test_where_all_clients_are_alike_newcomers_predict_what_they_predict(name):
    """A newcomer, and a client that was never drawn; each trains alone as long as the others did."""
    case, entry = CASES.get(name, Case()), METHODS[name]
    visits = {"visits": case.rounds} if entry.defaults.get("visits") else {}
    done = run(
        entry(**{**visits, **case.options}),
        case.rounds,
        federation=alike("abcd", case.classes),
        model=lambda: case.model(2 if case.classes else 1),
        steps=case.steps,
        lr=case.lr,
        participation=Fixed([["a", "b", "c"]]) if not case.all_drawn else None,
        execution=Execution("vmap", 4, False, "float64", capture=True),
    )
    found, later = outputs(done), outputs(onboard(done, alike("z", case.classes)))
    assert found.isfinite().all()
    assert (found - found[0]).abs().max() < case.tolerance
    assert (later - found[0]).abs().max() < case.tolerance
