"""Bucketing: a robust combination of means of a few uploads each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived, Leaves, Reducer
from plures.robust.robust import Robust


@dataclass(frozen=True)
class Bucketing(Robust):
    """Combine means of ``size`` uploads that are drawn at random in each round (Karimireddy et al. 2022, Algorithm 1).

    Means differ less than uploads, so that honest clients with rare data look less like attackers; but one attacker
    spoils a whole bucket, so the combination must stand as many hostile buckets as there are attackers. The last
    bucket may be smaller. All clients count the same. By name: ``fedavg+bucketing(size=2)+krum(f=1)``.

    Attributes:
        size: uploads of a bucket; 1 only changes their order.
        then: the combination of the buckets; without one, their mean.
    """

    title: ClassVar[str] = "bucketing"

    size: int = 2
    then: Robust | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PluresError(f"{self.title}: size={self.size}; give the number of uploads of a bucket, 1 or more")
        if self.then is not None and self.then.single:
            raise PluresError(
                f"{self.title}: {self.then.title} must see the upload of each client: leave bucketing out"
            )

    def together(self, other: Reducer) -> Reducer | None:
        return replace(self, then=other) if self.then is None and isinstance(other, Robust) else None

    @property
    def least(self) -> int:
        return 1 if self.then is None else (self.then.least - 1) * self.size + 1

    @property
    def remedy(self) -> str:
        return "" if self.then is None else self.then.remedy

    def start(self, value: Tensor, population: int) -> Leaves:
        return {} if self.then is None else self.then.start(value, population)

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, Leaves]:
        order = arrived.cohort.draw("buckets", len(uploads)).argsort().to(uploads.device)
        buckets = torch.split(order, self.size)
        means = torch.stack([uploads[bucket].mean(0) for bucket in buckets])
        if self.then is None:
            return means.mean(0), {}
        joint = torch.stack([arrived.joint[bucket].mean(0) for bucket in buckets])
        firsts = arrived.clients[torch.stack([bucket[0] for bucket in buckets]).cpu()]
        return self.then.combined(
            means, replace(arrived, weights=torch.ones_like(means[:, 0]), clients=firsts, joint=joint)
        )
