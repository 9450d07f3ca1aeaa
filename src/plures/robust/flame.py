"""FLAME: keep the largest group of directions, clip to the median length, add noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.method.shares.splitting import bipartition
from plures.robust.norms import shortening
from plures.robust.robust import COUNTS, Robust, whole


@dataclass(frozen=True)
class Flame(Robust):
    """Clustering by direction, clipping and noise, after Nguyen et al. 2022 (Algorithm 1).

    The changes are divided into the two groups that are least alike (Sattler et al. 2020, Algorithm 1). If no cosine
    between them reaches ``cosine`` and one group has more than half of the clients, the others are left out. What is
    admitted is shortened to the median length of all changes, and its mean gets Gaussian noise of ``noise`` times that
    length. All clients count the same.

    The paper clusters with HDBSCAN, which also leaves out the rim of the only cluster that it finds.

    Attributes:
        noise: lambda of the paper.
        cosine: groups this much alike are one.
        joint: directions and lengths are those of whole uploads; otherwise of each block.
    """

    title: ClassVar[str] = "flame"
    chooses: ClassVar[bool] = True

    noise: float = 0.001
    cosine: float = 0.0
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise PluresError(f"{self.title}: noise={self.noise}; give 0 or more")
        if not -1 <= self.cosine <= 1:
            raise PluresError(f"{self.title}: cosine={self.cosine}; give a number from -1 to 1")

    def stands(self, uploads: int) -> int:
        return (uploads - 1) // 2

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        changes = whole(uploads, arrived, self.joint)
        bound = changes.norm(dim=1).quantile(0.5)
        scale = shortening(changes, bound).unsqueeze(1)
        counts = admitted(changes, self.cosine)
        value = arrived.old + (scale * (uploads - arrived.old))[counts].mean(0)
        if self.noise:
            value = value + self.noise * bound * arrived.cohort.normal("noise", len(value)).to(value)
        return value, {COUNTS: counts}


def admitted(changes: Tensor, cosine: float) -> Tensor:
    """``(n,)`` a mask of the changes ``(n, d)`` that are not in a small group of another direction."""
    everybody = torch.ones(len(changes), dtype=torch.bool, device=changes.device)
    if len(changes) < 3:
        return everybody
    other, across = bipartition(changes)
    if across >= cosine or 2 * int(other.sum()) == len(changes):
        return everybody
    return (other if 2 * int(other.sum()) > len(changes) else ~other).to(changes.device)
