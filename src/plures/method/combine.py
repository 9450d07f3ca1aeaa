"""Part 5, combine: how a share's new value is made of the uploads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.models import Leaves


class Server(Protocol):
    """The server's step from the old value towards the combined uploads."""

    def step(self, old: Leaves, combined: Leaves, participation: float) -> Leaves:
        """New value of a block.

        Args:
            old: value that was broadcast.
            combined: what the reducer made of the uploads.
            participation: cohort size divided by population.
        """


@dataclass(frozen=True)
class Replace:
    """The combined uploads become the new value (McMahan et al. 2017)."""

    def step(self, old: Leaves, combined: Leaves, participation: float) -> Leaves:
        return combined


@dataclass(frozen=True)
class Relax:
    """``old + rate * (combined - old)``: the server learning rate, or pFedMe's beta.

    Attributes:
        rate: step length, or ``participation`` for the fraction of clients in the cohort (SCAFFOLD's control).
    """

    rate: float | Literal["participation"] = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.rate, float | int) and self.rate < 0:
            raise PluresError(f"server rate {self.rate}: it must not be negative")

    def step(self, old: Leaves, combined: Leaves, participation: float) -> Leaves:
        rate = participation if self.rate == "participation" else float(self.rate)
        if rate == 1.0:
            return combined
        return {k: v + rate * (combined[k] - v) if v.is_floating_point() else combined[k] for k, v in old.items()}


@dataclass(frozen=True)
class Combine:
    """Weights, reducer and server step of one block.

    Attributes:
        weights: ``examples`` (by training examples) or ``uniform``, as the method's paper has it.
        server: the server's step.
    """

    weights: Literal["examples", "uniform"] = "examples"
    server: Server = field(default_factory=Replace)


class Mean:
    """Weighted mean of stacked uploads, accumulated chunk by chunk in double precision, one row per shared model.

    The mean of one upload is that upload. Integer leaves are rounded to the nearest integer.

    Args:
        old: values that were broadcast, ``(models, ...)``; a model without uploads keeps its value.
    """

    def __init__(self, old: Leaves) -> None:
        self._old = old
        self._sum = {k: torch.zeros(v.shape, dtype=torch.float64, device=v.device) for k, v in old.items()}
        self._weight = torch.zeros(0)

    def expect(self, weight: Tensor, model: Tensor) -> None:
        """Announce all weights ``(cohort,)`` and the model that each upload goes to, before the first chunk."""
        models = len(next(iter(self._sum.values())))
        self._weight = torch.zeros(models, dtype=torch.float64, device=weight.device)
        self._weight.index_add_(0, model, weight.to(torch.float64))

    def add(self, uploads: Leaves, weight: Tensor, model: Tensor) -> None:
        """Add a chunk of uploads ``(chunk, ...)`` with weights and models ``(chunk,)``."""
        share = weight.to(torch.float64) / self._weight[model]
        for k, rows in uploads.items():
            flat = rows.reshape(len(rows), -1).to(torch.float64)
            total = self._sum[k].view(len(self._weight), -1)
            if len(self._weight) == 1:
                total += share.unsqueeze(0) @ flat
            else:
                total.index_add_(0, model, share.unsqueeze(1) * flat)

    def result(self) -> Leaves:
        """The combined value of every model, ``(models, ...)``."""
        received = self._weight > 0
        combined = {}
        for k, old in self._old.items():
            total = self._sum[k] if old.is_floating_point() else self._sum[k].round()
            mask = received.view(-1, *(1,) * (old.dim() - 1))
            combined[k] = torch.where(mask, total.to(old.dtype), old)
        return combined
