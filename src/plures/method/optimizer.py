"""Local optimizers on stacked leaves: elementwise, hence exact for every client of the stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.signature import checked

Tensors = list[Tensor]
OPTIMIZERS = "an optimizer, such as SGD(lr=0.1) or Adam(lr=0.001)"
"""Wording for messages."""


@runtime_checkable
class Optimizer(Protocol):
    """A local optimizer. Its state lives for one phase of one visit."""

    @property
    def lr(self) -> float: ...

    @property
    def slots(self) -> int:
        """State tensors kept for each leaf."""

    def step(
        self, values: Tensors, grads: Tensors, state: list[Tensors], lr: Tensor | float, step: Tensor | int
    ) -> None:
        """Change the engine's working leaves in place.

        Args:
            values: the leaves, ``(clients, ...)`` each, changed in place.
            grads: their gradients.
            state: ``slots`` lists of tensors, zero at the first step, changed in place.
            lr: learning rate of this step.
            step: number of this step, from 1.
        """


@checked
@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with the update rule and defaults of ``torch.optim.SGD``.

    Attributes:
        lr: learning rate.
        momentum: heavy-ball coefficient.
        weight_decay: coefficient of the squared norm of the *trained* leaves, times one half.
        nesterov: Nesterov's form of the momentum.

    Examples:
        >>> plures.Training(rounds=10, optimizer=plures.SGD(lr=0.1, momentum=0.9)).optimizer
        SGD(lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False)
    """

    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _non_negative(self, "lr", "momentum", "weight_decay")

    @property
    def slots(self) -> int:
        return int(self.momentum > 0)

    def step(
        self, values: Tensors, grads: Tensors, state: list[Tensors], lr: Tensor | float, step: Tensor | int
    ) -> None:
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, values, alpha=self.weight_decay))
        if self.momentum:
            (velocity,) = state
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, grads)
            grads = list(torch._foreach_add(grads, velocity, alpha=self.momentum)) if self.nesterov else velocity
        if isinstance(lr, Tensor):
            for value, grad in zip(values, grads, strict=True):
                value.addcmul_(grad, lr.to(value.dtype), value=-1.0)
        else:
            torch._foreach_add_(values, grads, alpha=-lr)


def reach(optimizer: SGD, steps: Tensor) -> Tensor:
    """How many times the gradients of some steps count in the total change of those steps.

    With ``momentum`` ``b`` the gradient of step ``j`` of ``K`` counts ``1 + b + ... + b^(K-j)`` times; without, once.
    So the change divided by ``lr`` times this number is a weighted mean of the gradients.

    Args:
        optimizer: the rule.
        steps: ``K``.
    """
    b = optimizer.momentum
    if not b:
        return steps
    total = steps * (steps + 1) / 2 if b == 1 else (steps - b * (1 - b**steps) / (1 - b)) / (1 - b)
    return steps + b * total if optimizer.nesterov else total


@checked
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma, Ba 2015), with the update rule and defaults of ``torch.optim.Adam`` and ``AdamW``.

    Attributes:
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: of the trained leaves; added to the gradient, or multiplied in when ``decoupled``.
        decoupled: decoupled weight decay (Loshchilov, Hutter 2019).

    Examples:
        >>> plures.Training(rounds=10, optimizer=plures.Adam(lr=0.001)).optimizer.betas
        (0.9, 0.999)
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        _non_negative(self, "lr", "eps", "weight_decay")

    @property
    def slots(self) -> int:
        return 2

    def step(
        self, values: Tensors, grads: Tensors, state: list[Tensors], lr: Tensor | float, step: Tensor | int
    ) -> None:
        first, second = state
        b1, b2 = self.betas
        for value, grad, m, v in zip(values, grads, first, second, strict=True):
            if self.weight_decay and not self.decoupled:
                grad = grad + self.weight_decay * value
            m.mul_(b1).add_((1 - b1) * grad)
            v.mul_(b2).add_((1 - b2) * grad * grad)
            denominator = (v / (1 - b2**step)).sqrt() + self.eps
            if self.decoupled:
                value.mul_(1 - lr * self.weight_decay)
            value.sub_(lr / (1 - b1**step) * (m / denominator))


@checked
def AdamW(  # noqa: N802 - the name the field knows
    lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
) -> Adam:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019).

    Examples:
        >>> plures.AdamW(0.001, weight_decay=0.01) == plures.Adam(0.001, weight_decay=0.01, decoupled=True)
        True
    """
    return Adam(lr, betas, eps, weight_decay, decoupled=True)


LOCAL_OPTIMIZERS: Mapping[str, Callable[..., SGD | Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Local optimizers by name."""


def _non_negative(owner: object, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) >= 0:
            raise PluresError(f"{type(owner).__name__}: {name}={getattr(owner, name)} must be a number >= 0")
