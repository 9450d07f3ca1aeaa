"""Regression that outliers do not dominate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from plures.errors import PluresError
from plures.tasks.losses import replaced
from plures.tasks.regression import Regression


@dataclass(frozen=True)
class Huber(Regression):
    """Real numbers; the loss is Huber's (1964), summed over outputs: squared near 0, linear beyond ``delta``.

    It is half the squared error up to an error of ``delta``, then ``delta (|e| - delta / 2)``.

    Attributes:
        delta: where the loss becomes linear, in the units of the targets.

    Examples:
        >>> Huber(1, delta=2.0).losses(torch.tensor([[1.0], [5.0]]), torch.zeros(2, 1)).tolist()
        [0.5, 8.0]
    """

    kind: ClassVar[str] = "huber"

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta > 0:
            raise PluresError(f"huber: delta={self.delta}; give a number above 0")
        if self.delta != type(self).delta:
            replaced(self, "delta")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        return F.huber_loss(outputs, targets, reduction="none", delta=self.delta).sum(-1)
