"""One backward pass for a stack of clients gives every client's gradient, and is taken only where it does (float64)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plures.methods import ditto, fedavg, perfedavg
from plures.run.steps import Stacked
from trajectories import LOOP, WIDE, assert_same, everything_of, mlp, normed, run


class Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity. Its rule for ``vmap`` is that of plain rounding, without gradient."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope

    @staticmethod
    def vmap(info: Any, places: tuple[int | None, ...], x: Tensor) -> tuple[Tensor, int | None]:
        return x.round(), places[0]


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(Rounded.apply(4 * self.one(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x.unflatten(1, (3, 2)))[0][:, -1])


CASES = {
    "plain loss": (fedavg(), mlp, [True]),
    "batch normalisation": (fedavg(), normed, [True]),
    "objective": (ditto(0.5), mlp, [True, True]),
    "second order, then adaptation": (perfedavg(0.05, "exact"), mlp, [True, True]),
    "rule for vmap without gradient": (fedavg(), Quantised, [False]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stack_has_the_gradients_of_its_clients(name):
    method, model, expected = CASES[name]
    done = run(method, WIDE, model=model)
    assert [taken for about, taken in done.bound.verdicts.values() if about[0] is Stacked] == expected
    assert_same(everything_of(done), everything_of(run(method, LOOP, model=model)))


def test_recurrent_layers_stack_either_way():
    assert_same(
        everything_of(run(fedavg(), WIDE, model=Recurrent)), everything_of(run(fedavg(), LOOP, model=Recurrent))
    )
