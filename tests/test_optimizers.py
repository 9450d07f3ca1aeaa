"""Local optimizers against torch.optim, and an optimizer that a user wrote (float64)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from plures.errors import PluresError
from plures.method import SGD, Adam, AdamW
from plures.methods import fedavg
from trajectories import LOOP, WIDE, assert_same, everything_of, mlp, ragged, run

PAIRS = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "weight decay": (SGD(0.1, weight_decay=0.2), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.2)),
    "momentum": (SGD(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "momentum and weight decay": (
        SGD(0.1, 0.9, 0.2),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2),
    ),
    "nesterov": (
        SGD(0.1, 0.9, 0.2, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2, nesterov=True),
    ),
    "adam": (Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "adam with weight decay": (Adam(0.05, weight_decay=0.2), lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.2)),
    "adam with other moments": (
        Adam(0.05, (0.5, 0.9), 1e-3),
        lambda p: torch.optim.Adam(p, 0.05, betas=(0.5, 0.9), eps=1e-3),
    ),
    "adamw": (AdamW(0.05, weight_decay=0.2), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.2)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("scalars", [float, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["numbers", "tensors"])
def test_ten_steps_equal_torch_optim(name, scalars):
    ours, make = PAIRS[name]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), ())]
    values, theirs = copy.deepcopy(start), [t.clone().requires_grad_(True) for t in start]
    optimizer, memory = make(theirs), [[torch.zeros_like(t) for t in start] for _ in range(ours.slots)]
    for step in range(1, 11):
        grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in start]
        kept = copy.deepcopy(grads)
        ours.step(values, grads, memory, scalars(ours.lr), scalars(step))
        for parameter, grad in zip(theirs, kept, strict=True):
            parameter.grad = grad
        optimizer.step()
        for value, expected, grad, before in zip(values, theirs, grads, kept, strict=True):
            torch.testing.assert_close(value, expected.detach(), atol=1e-12, rtol=0)
            assert torch.equal(grad, before)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_bad_options_are_named(make):
    with pytest.raises(PluresError, match=r"lr=-1"):
        make(lr=-1.0)
    with pytest.raises(PluresError, match="weight_decay=nan"):
        make(weight_decay=float("nan"))


def test_amsgrad_is_not_offered():
    with pytest.raises(PluresError, match="Adam: no parameter 'amsgrad'"):
        Adam(amsgrad=True)


@dataclass
class SignMomentum:
    """A user's optimizer: the sign of a moving average. It is not frozen, hence not hashable."""

    lr: float = 0.01
    slots: int = 1

    def step(self, values, grads, state, lr, step):
        for value, grad, average in zip(values, grads, state[0], strict=True):
            average.mul_(0.9).add_(grad, alpha=0.1)
            value.sub_(lr * torch.sign(average))


def test_a_users_optimizer():
    expected = everything_of(run(fedavg(), LOOP, optimizer=SignMomentum(), clip=None))
    assert_same(everything_of(run(fedavg(), WIDE, optimizer=SignMomentum(), clip=None)), expected)
    done = run(fedavg(), LOOP, optimizer=SignMomentum(), clip=None, rounds=1, steps=1, federation=ragged((9,)))
    moved = {path: t[0] - done.bound.initial["model"][path] for path, t in done.states([0])["model"].items()}
    assert all(torch.allclose(m.abs(), torch.full_like(m, 0.01), atol=1e-12) for m in moved.values())
    assert set(moved) == set(dict(mlp().named_parameters()))
