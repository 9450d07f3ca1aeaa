"""Forecasts: the next values of a series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.metrics import AMOUNTS, STEPS, Catalogue
from plures.tasks.regression import Regression


@dataclass(frozen=True)
class Forecast(Regression):
    """The values of the next steps, one output each; the loss is the squared error, the mean over steps.

    Metrics are those of a regression over all steps; ``rmse_step_N`` and ``mae_step_N`` are those of one step.

    Examples:
        >>> Forecast(2).losses(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]])).tolist()
        [4.5]
    """

    kind: ClassVar[str] = "forecast"
    called: ClassVar[str] = "steps"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"step {number}" for number in range(1, self.outputs + 1))

    @property
    def further(self) -> Catalogue:
        return AMOUNTS | STEPS

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        return (outputs - targets).square().mean(-1)

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``2 sum_o (d f_o)^2 / steps``."""
        return outputs, torch.full_like(outputs, 2.0 / self.outputs)
