"""Clients of different sizes, small networks, and finished runs whose whole state can be compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from plures.federation import SPLITS, Federation, Split
from plures.method import SGD
from plures.models import with_roles
from plures.run import Execution, Run, Training
from plures.tasks import Classification

SIZES = (37, 5, 13, 8, 24, 17, 30)
LOOP = Execution("loop", 1, False, "float64")
WIDE = Execution("vmap", 128, False, "float64")
HEAVY = SGD(0.1, momentum=0.9, weight_decay=0.01)


def ragged(sizes=SIZES, features=(6,), classes=3, tokens=0, seed=0) -> Federation:
    """Clients of different sizes and label mixtures; inputs are normal, or tokens below a number."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    inputs = torch.randn(total, *features, generator=generator, dtype=torch.float64)
    if tokens:
        inputs = torch.randint(0, tokens, (total, *features), generator=generator)
    split = Split.of(list(torch.arange(total)[torch.randperm(total, generator=generator)].split(list(sizes))))
    return Federation(
        name="ragged",
        task=Classification(tuple(map(str, range(classes)))),
        inputs=inputs,
        targets=torch.randint(0, classes, (total,), generator=generator),
        clients=tuple(f"c{i}" for i in range(len(sizes))),
        splits=dict.fromkeys(SPLITS, split),
    )


def mlp() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), head="2")


def normed() -> nn.Module:
    """Without the bias that batch normalisation cancels: its gradient is rounding noise, which Adam would amplify."""
    layers = nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    return with_roles(nn.Sequential(*layers), head="3")


def run(method, execution, *, model=mlp, federation=None, participation=None, **training) -> Run:
    """A finished run with batches of 8."""
    work = {} if training.keys() & {"epochs", "steps"} else {"epochs": 2}
    options = {"rounds": 2, "batch_size": 8, "optimizer": HEAVY, "clip": 0.7} | work | training
    done = Run(
        federation or ragged(), model, method, Training(**options), participation=participation, execution=execution
    )
    done.losses = [(record.loss, record.objective) for record in done.rounds()]  # type: ignore[attr-defined]
    return done


def everything_of(done: Run) -> dict[str, torch.Tensor]:
    """Everything that a run holds and predicts with, by name."""
    clients = list(range(len(done.federation)))
    states = {f"{s}.{p}": t for s, leaves in done.states(clients).items() for p, t in leaves.items()}
    predictors = {f"predict.{p}": t for p, t in done.predictors(clients).items()}
    return states | predictors | {"losses": torch.tensor(done.losses, dtype=torch.float64)}  # type: ignore[attr-defined]


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float = 1e-10) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


class SelfAttention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, dropout, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Pooled(nn.Module):
    """A sequence model followed by the mean over positions."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(x).mean(1))


def encoder(dropout: float = 0.0) -> nn.Module:
    return Pooled(nn.TransformerEncoderLayer(4, 2, 8, dropout, batch_first=True))


class Hidden(nn.Module):
    """Dropout without a dropout layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.dropout(torch.tanh(self.one(x)), 0.3, self.training))
