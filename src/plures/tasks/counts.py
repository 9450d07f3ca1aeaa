"""Counts: how often something happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.metrics import COUNTS, Catalogue, Metric
from plures.tasks.regression import Regression


@dataclass(frozen=True)
class Counts(Regression):
    """Numbers of events, whose expected number is the exponential of an output (Poisson regression).

    The loss is ``exp(f) - y f``, the negative log-likelihood without the term that does not depend on ``f``, summed
    over outputs. Exposures that differ are weights: a target is then ``events / exposure``, its weight the exposure.

    Examples:
        >>> task = Counts(1)
        >>> outputs, targets = torch.zeros(1, 1), torch.tensor([[3.0]])
        >>> task.losses(outputs, targets).tolist(), task.expected(outputs).tolist()
        ([1.0], [[1.0]])
    """

    kind: ClassVar[str] = "counts"
    scalable: ClassVar[bool] = False
    measures: ClassVar[tuple[Metric, ...]] = COUNTS

    @property
    def further(self) -> Catalogue:
        return Catalogue()

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        bad, _ = super().faults(targets)
        return bad | (targets < 0).flatten(1).any(1), "a count below 0 or not finite; correct it or leave the row out"

    def expected(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        return (outputs.exp() - targets * outputs).sum(-1)

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_o exp(f_o) (d f_o)^2``: the variance of a count is its expectation."""
        return outputs, outputs.exp()

    def scores(self, expected: Tensor) -> Tensor:
        return expected.clamp(min=torch.finfo(expected.dtype).tiny).log()
