"""Regression: one or several real numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import AMOUNTS, REGRESSION, Catalogue, Metric
from plures.tasks.reading import refuse
from plures.tasks.task import Array, Loss, Task, Where


@dataclass(frozen=True)
class Regression(Task):
    """Real numbers; the loss is the squared error, summed over outputs.

    Attributes:
        outputs: number of values in a target; default: as in the data.
        loss: a loss of your own instead of the squared error, ``(outputs, targets) -> (batch,)``.

    Examples:
        >>> task = Regression(2)
        >>> outputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]])
        >>> task.losses(outputs, targets).tolist()
        [9.0]
    """

    kind: ClassVar[str] = "regression"
    measures: ClassVar[tuple[Metric, ...]] = REGRESSION
    by_data: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: int = 0
    loss: Loss | None = None

    @property
    def further(self) -> Catalogue:
        return AMOUNTS

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        targets = self.numbers(values, where)
        if self.outputs and self.outputs != targets.shape[1]:
            raise PluresError(f"targets have {targets.shape[1]} numbers, but the {self.kind} has {self.outputs}")
        return replace(self, outputs=targets.shape[1]), targets

    def numbers(self, values: Array, where: Where) -> Tensor:
        """Raw targets as numbers, ``(n, numbers)``."""
        if values.dtype.kind not in "fiub":
            raise PluresError(f"targets of type {values.dtype} cannot be regressed on; give numbers")
        targets = torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))
        refuse(*self.faults(targets), where)
        return targets

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1) if self.loss is None else self.loss(outputs, targets)

    @property
    def squared(self) -> bool:
        return self.loss is None and self._written_for("squared", "losses", "terms")

    def constant(self, targets: Tensor, weight: Tensor) -> Tensor:
        """The mean, ``(outputs,)``; for a loss of your own, the outputs of the least loss."""
        if not self.squared or not self._written_for("constant", "losses"):
            return super().constant(targets, weight)
        given = weight.to(torch.float64)
        return given @ targets.to(torch.float64) / torch.where(given.any(), given.sum(), 1.0)

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``2 sum_o (d f_o)^2``: the squared error is the negative log-likelihood of noise with variance 1/2."""
        return outputs, torch.full_like(outputs, 2.0)

    def scores(self, expected: Tensor) -> Tensor:
        return expected

    def certain(self, targets: Tensor) -> Tensor:
        return targets
