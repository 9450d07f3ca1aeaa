"""A network whose outputs are in the unit of the target, for errors that the owner of the data understands."""

from __future__ import annotations

from torch import Tensor, nn

from plures.models import with_roles


class InUnits(nn.Linear):
    """A linear layer whose output is multiplied by a typical amount, so that its weights have usual sizes."""

    def __init__(self, inputs: int, outputs: int, unit: float) -> None:
        super().__init__(inputs, outputs)
        self.unit = unit

    def forward(self, input: Tensor) -> Tensor:
        return self.unit * super().forward(input)


def in_units(features: tuple[int, ...], outputs: int, unit: float, hidden: int = 32) -> nn.Module:
    """One hidden layer; ``unit`` is a typical amount of the target.

    Squared errors and their gradients are ``unit`` squared times as large as for standardised targets: see `rates` and
    `penalties`.
    """
    body = nn.Sequential(nn.Linear(features[0], hidden), nn.ReLU())
    return with_roles(nn.Sequential(body, InUnits(hidden, outputs, unit)), body="0", head="1")


def rates(unit: float, *usual: float) -> tuple[float, ...]:
    """Learning rates for :func:`in_units` that take the steps of the usual ones."""
    return tuple(rate / unit**2 for rate in usual)


def penalties(unit: float, *usual: float) -> tuple[float, ...]:
    """Strengths of a penalty on weights that weigh as much against the loss as the usual ones."""
    return tuple(strength * unit**2 for strength in usual)
