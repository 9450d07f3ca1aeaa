"""Combinations that average a part of the uploads: the closest together, or those off the main direction least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.robust.krum import distances, picked
from plures.robust.robust import COUNTS, Robust, hostile, whole

MOST_SUBSETS = 300_000


@dataclass(frozen=True)
class SmallestDiameter(Robust):
    """The mean of the ``n - f`` uploads with the smallest diameter (Rousseeuw 1985; El Mhamdi et al. 2018, MDA).

    Every subset is tried, so it is for few clients. Of subsets with the same diameter, the one with the smallest sum of
    squared distances counts. Sizes of clients do not count.

    Attributes:
        f: number of uploads that may be hostile; it needs more than ``2 f``.
        joint: choose once, by the whole upload; otherwise for each block apart.
    """

    title: ClassVar[str] = "mda"
    chooses: ClassVar[bool] = True

    f: int = 1
    joint: bool = True

    def __post_init__(self) -> None:
        hostile(self.title, self.f)

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(uploads)
        if (many := math.comb(n, self.f)) > MOST_SUBSETS:
            raise PluresError(
                f"{self.title}: {n} uploads without f={self.f} have {many} subsets, too many to try: take dnc instead"
            )
        apart = distances(whole(uploads, arrived, self.joint)).cpu()
        best = (math.inf, math.inf)
        kept = list[int]()
        for some in combinations(range(n), n - self.f):
            among = apart[list(some)][:, list(some)]
            if (size := (float(among.max()), float(among.sum()))) < best:
                best, kept = size, list(some)
        return uploads[kept].mean(0), {COUNTS: picked(kept, uploads)}


@dataclass(frozen=True)
class DivideAndConquer(Robust):
    """The mean without the uploads that lie farthest along the direction in which they differ most.

    DnC (Shejwalkar and Houmansadr 2021, Algorithm 2): an upload's score is the square of its centred projection on the
    top right singular vector, on a random part of the coordinates; ``c f`` uploads with the highest scores are left
    out. Repeated, an upload must remain each time. Sizes of clients do not count.

    Attributes:
        f: number of uploads that may be hostile.
        c: how many are left out for each of them.
        repeat: number of repetitions, each with other coordinates.
        coordinates: size of the random part.
        joint: choose once, by the whole upload; otherwise for each block apart.
    """

    title: ClassVar[str] = "dnc"
    chooses: ClassVar[bool] = True

    f: int = 1
    c: float = 1.0
    repeat: int = 1
    coordinates: int = 10_000
    joint: bool = True

    def __post_init__(self) -> None:
        hostile(self.title, self.f)
        if not self.c > 0:
            raise PluresError(f"{self.title}: c={self.c}; give a positive number")
        if self.repeat < 1 or self.coordinates < 1:
            raise PluresError(
                f"{self.title}: repeat={self.repeat}, coordinates={self.coordinates}; give 1 or more of each"
            )

    @property
    def least(self) -> int:
        return max(2 * self.f + 1, self.repeat * math.ceil(self.c * self.f) + 1)

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        rows = whole(uploads, arrived, self.joint)
        left_out = set[int]()
        for time in range(self.repeat):
            part = rows
            if self.coordinates < rows.shape[1]:
                random = torch.Generator().manual_seed(arrived.cohort.key(f"coordinates {time}"))
                some = torch.randperm(rows.shape[1], generator=random)[: self.coordinates]
                part = rows[:, some.to(rows.device)]
            order = outlying(part).argsort(stable=True)
            left_out |= set(order[len(order) - math.ceil(self.c * self.f) :].tolist())
        kept = [place for place in range(len(rows)) if place not in left_out]
        return uploads[kept].mean(0), {COUNTS: picked(kept, uploads)}


def outlying(rows: Tensor) -> Tensor:
    """``(n,)`` squared projections of centred rows ``(n, d)`` on their top right singular vector."""
    centred = rows - rows.mean(0)
    values, along = torch.linalg.eigh(centred @ centred.T)
    return torch.mul(values[-1].clamp(min=0), along[:, -1].square())
