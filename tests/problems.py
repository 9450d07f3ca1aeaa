"""The canonical problems of the tests, as ordinary federations: every client has one example, repeated n_i times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Method
from plures.run import Execution, Participation, Run, Training
from plures.tasks import Regression

CURVATURES, OPTIMA, SIZES = (1.0, 2.0, 4.0), (-1.0, 0.5, 3.0), (10, 20, 30)
EXACT = Execution("vmap", 16, False, "float64")
LONG = 60
"""Steps from which a run repeats a recorded step: to record one takes as long as thirty steps."""
STILL = 1e-13
"""A round that moves every leaf of every client by less has nothing left to do: what follows is rounding."""


def quadratic(curvatures=CURVATURES, optima=OPTIMA, sizes=SIZES, names=None) -> Federation:
    """``f_i(w) = a_i/2 (w - b_i)^2``: inputs are sqrt(a_i/2) and targets sqrt(a_i/2) b_i, under squared error."""
    scale = [(a / 2) ** 0.5 for a in curvatures]
    rows = torch.arange(sum(sizes)).split(list(sizes))
    names = names or tuple("abcdefgh"[: len(sizes)])
    split = Split.of(list(rows))
    return Federation(
        name="Q3",
        task=Regression(1),
        inputs=torch.cat([torch.full((n, 1), s, dtype=torch.float64) for s, n in zip(scale, sizes, strict=True)]),
        targets=torch.cat(
            [torch.full((n, 1), s * b, dtype=torch.float64) for s, b, n in zip(scale, optima, sizes, strict=True)]
        ),
        clients=tuple(names),
        splits=dict.fromkeys(SPLITS, split),
    )


def scalar(start: float = 0.0):
    """One weight: ``w``."""

    def model() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, start)
        return layer

    return model


class BodyHead(nn.Module):
    """Two weights, ``u * h``: the problem B3 of body and head."""

    roles: ClassVar = {"head": ("h",), "body": ("u",)}

    def __init__(self) -> None:
        super().__init__()
        self.u, self.h = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.u.weight, 1.0)
        nn.init.constant_(self.h.weight, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.h(self.u(x))


def run(method: Method, rounds: int, **options: Any) -> Run:
    """A finished run of full-batch gradient steps in double precision; for the options see ``begun``."""
    done = begun(method, rounds, **options)
    for _ in done.rounds():
        pass
    return done


def at_rest(method: Method, rounds: int, **options: Any) -> Run:
    """A run that has converged, so that rounds no longer move anything, or has finished its rounds."""
    return settled(begun(method, rounds, **options))


def settled(done: Run) -> Run:
    """The run, after all its rounds or the first that moves nothing."""
    before = None
    clients = list(range(len(done.federation)))
    for _ in done.rounds():
        now = torch.cat([t.flatten() for leaves in done.states(clients).values() for t in leaves.values()])
        if before is not None and float((now - before).abs().max()) < STILL:
            break
        before = now
    return done


def begun(
    method: Method,
    rounds: int,
    *,
    federation: Federation | None = None,
    model=None,
    lr: float = 0.1,
    steps: int = 2,
    participation: Participation | None = None,
    execution: Execution | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """A run of full-batch gradient steps in double precision, before its first round.

    By default it is ``EXACT``, and a long one records its steps, which are rounded otherwise.
    """
    if execution is None:
        execution = replace(EXACT, capture=True) if rounds * steps >= LONG else EXACT
    return Run(
        federation or quadratic(),
        model or scalar(),
        method,
        Training(rounds=rounds, batch_size=batch_size, steps=steps, optimizer=SGD(lr)),
        participation=participation,
        execution=execution,
        seed=seed,
    )


def close(value: object) -> object:
    """Expected values, computed by hand and therefore compared to nine decimals."""
    return pytest.approx(value, abs=1e-9)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal bit for bit."""
    assert left.keys() == right.keys()
    return all(torch.equal(left[path], right[path]) for path in left)


def near(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two models in double precision differ by no more than rounding.

    For equal arithmetic on different shapes, such as one product against a batched one: kernels round by shape.
    """
    assert left.keys() == right.keys()
    return all(torch.allclose(left[path], right[path], atol=1e-12, rtol=0) for path in right)


def weight(run: Run, slot: str = "model", path: str = "weight") -> float:
    """The shared scalar of a run."""
    return float(run.states([0])[slot][path][0].squeeze())


def personal(run: Run, slot: str, path: str = "weight") -> list[float]:
    """A personal scalar of every client."""
    return run.states(list(range(len(run.federation))))[slot][path].flatten().tolist()


def predictions(run: Run, path: str = "weight") -> list[float]:
    """The scalar that every client predicts with."""
    return run.predictors(list(range(len(run.federation))))[path].flatten().tolist()


def shared(done: Run) -> dict[str, torch.Tensor]:
    """The slot ``model`` of every client."""
    return done.states(list(range(len(done.federation))))["model"]


def predictors(done: Run) -> dict[str, torch.Tensor]:
    """The model that every client predicts with."""
    return done.predictors(list(range(len(done.federation))))


def starts(*values):
    """A factory whose first module starts at the first value, the second at the second, and so on."""
    remaining = list(values)

    def model() -> nn.Module:
        return scalar(remaining.pop(0))()

    return model
