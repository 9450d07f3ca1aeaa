"""The geometric median: the point with the least sum of distances to all uploads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.robust.robust import Robust, weighed_mean, whole


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The smoothed Weiszfeld algorithm from the mean (Pillutla et al. 2022, RFA, Algorithm 2).

    Each step is a mean in which an upload counts its weight divided by its distance to the last one, at least ``nu``.
    Weights are those of the method: an upload of weight 2 counts as two.

    Attributes:
        steps: number of steps; 0 is the mean.
        nu: least distance that divides.
        joint: distances are those of whole uploads; otherwise each block has its own.
    """

    title: ClassVar[str] = "geometric_median"

    steps: int = 3
    nu: float = 1e-6
    joint: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise PluresError(f"{self.title}: steps={self.steps}; give 0 or more")
        if not self.nu > 0:
            raise PluresError(f"{self.title}: nu={self.nu}; give a positive number")

    def stands(self, uploads: int) -> int:
        return (uploads - 1) // 2

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        rows, weights = whole(uploads, arrived, self.joint), arrived.weights
        for _ in range(self.steps):
            apart = (rows - weighed_mean(rows, weights)).norm(dim=1)
            weights = arrived.weights / apart.clamp(min=self.nu)
        return weighed_mean(uploads, weights), {}
