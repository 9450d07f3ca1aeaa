"""Norm bounding: no upload moves the mean farther than a bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.robust.robust import Robust, weighed_mean, whole


@dataclass(frozen=True)
class NormBound(Robust):
    """The weighted mean of changes that the server shortens to a norm of at most ``norm`` (Sun et al. 2019).

    The stage ``clip`` of the wire does the same at the client and at the server, and also works with sums that the
    server cannot read one by one.

    Attributes:
        norm: the bound; infinity bounds nothing.
        joint: the norm is that of the whole upload; otherwise each block has its own.
    """

    title: ClassVar[str] = "norm_bound"

    norm: float = 1.0
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise PluresError(f"{self.title}: norm={self.norm}; give a positive number")

    def stands(self, uploads: int) -> None:
        return None

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        scale = shortening(whole(uploads, arrived, self.joint), self.norm).unsqueeze(1)
        bounded = torch.where(scale < 1, arrived.old + scale * (uploads - arrived.old), uploads)
        return weighed_mean(bounded, arrived.weights), {}


def shortening(changes: Tensor, norm: float | Tensor) -> Tensor:
    """``(n,)`` what changes ``(n, d)`` are multiplied by to be no longer than ``norm``."""
    length = changes.norm(dim=1)
    return torch.where(length > norm, norm / length, 1.0) if norm != inf else torch.ones_like(length)
