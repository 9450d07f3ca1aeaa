"""Centred clipping: changes are clipped around the last round's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived, Leaves
from plures.robust.norms import shortening
from plures.robust.robust import Robust, weighed_mean


@dataclass(frozen=True)
class CentredClip(Robust):
    """Clip the uploads around a centre, move it to their mean, and keep it for the next round.

    ``v <- v + mean(clip(x_i - v, tau))``, ``steps`` times, where ``x_i`` are changes (Karimireddy et al. 2021,
    Algorithm 2). The centre starts at zero. Weights are those of the method. The centre is known to everybody who
    knows two models in a row, so an attacker can aim at it.

    Each block has a centre of its own.

    Attributes:
        tau: how far an upload may be from the centre.
        steps: number of steps in a round.
    """

    title: ClassVar[str] = "centred_clip"

    tau: float = 10.0
    steps: int = 3

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise PluresError(f"{self.title}: tau={self.tau}; give a positive number")
        if self.steps < 1:
            raise PluresError(f"{self.title}: steps={self.steps}; give 1 or more")

    def stands(self, uploads: int) -> None:
        return None

    def remembers(self, value: Tensor, population: int) -> Leaves:
        return {"centre": torch.zeros_like(value)}

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        changes, centre = uploads - arrived.old, arrived.memory["centre"]
        for _ in range(self.steps):
            apart = changes - centre
            centre = centre + weighed_mean(shortening(apart, self.tau).unsqueeze(1) * apart, arrived.weights)
        return arrived.old + centre, {"centre": centre}
