"""Quantiles: a range in which a number lies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import QUANTILES, Catalogue, Metric
from plures.tasks.regression import Regression
from plures.tasks.task import Array, Where


@dataclass(frozen=True)
class Quantile(Regression):
    """Quantiles of one number, one output each; the loss is the pinball loss (Koenker, Bassett 1978), their mean.

    A client's prediction is the quantile nearest to the median.

    Attributes:
        levels: between 0 and 1, in increasing order.

    Examples:
        >>> Quantile(levels=(0.25, 0.75)).losses(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0]])).tolist()
        [0.25]
    """

    kind: ClassVar[str] = "quantile"
    called: ClassVar[str] = "quantiles"
    measures: ClassVar[tuple[Metric, ...]] = QUANTILES
    by_data: ClassVar[tuple[str, ...]] = ()

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = tuple(self.levels) if isinstance(self.levels, tuple | list) else (self.levels,)
        inside = all(isinstance(level, int | float) and 0 < level < 1 for level in levels)
        if not levels or not inside or any(a >= b for a, b in pairwise(levels)):
            raise PluresError(f"quantile: levels={self.levels!r}; give numbers between 0 and 1 in increasing order")
        if self.outputs not in (0, len(levels)):
            raise PluresError(f"quantile: outputs={self.outputs}, but there are {len(levels)} levels; leave it out")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "outputs", len(levels))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"q{level:g}" for level in self.levels)

    @property
    def target(self) -> tuple[int, ...]:
        return (1,)

    @property
    def further(self) -> Catalogue:
        return Catalogue()

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        targets = self.numbers(values, where)
        if targets.shape[1] != 1:
            raise PluresError(f"quantile predicts one number, but targets have {targets.shape[1]}")
        return self, targets

    def decide(self, outputs: Tensor) -> Tensor:
        middle = min(range(len(self.levels)), key=lambda place: abs(self.levels[place] - 0.5))
        return outputs[..., middle : middle + 1]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        level, short = outputs.new_tensor(self.levels), targets - outputs
        return torch.where(short > 0, level * short, (level - 1) * short).mean(-1)

    def certain(self, targets: Tensor) -> Tensor:
        return targets.expand(*targets.shape[:-1], len(self.levels))
