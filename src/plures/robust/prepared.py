"""What prepares uploads for another combination: buckets, means of neighbours, shortened lengths."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived, Leaves, Reducer
from plures.robust.krum import distances
from plures.robust.norms import shortening
from plures.robust.robust import COUNTS, Robust, hostile, whole


@dataclass(frozen=True)
class Prepared(Robust):
    """A combination of uploads that were prepared for it.

    Attributes:
        then: the combination; without one, the mean.
    """

    mixes: ClassVar[bool] = True

    then: Robust | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.then is not None and self.then.single and self.mixes:
            raise PluresError(
                f"{self.title}: {self.then.title} must see the upload of each client: leave {self.title} out"
            )

    def together(self, other: Reducer) -> Reducer | None:
        inner = other if self.then is None else self.then.together(other)
        return replace(self, then=inner) if isinstance(inner, Robust) else None

    @property
    def single(self) -> bool:  # type: ignore[override]
        return self.then is not None and self.then.single

    @property
    def remedy(self) -> str:
        return super().remedy or ("" if self.then is None else self.then.remedy)

    def remembers(self, value: Tensor, population: int) -> Leaves:
        return {} if self.then is None else self.then.remembers(value, population)

    def finished(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        """The combination of prepared uploads."""
        if self.then is not None:
            return self.then.combined(uploads, arrived)
        return (arrived.weights / arrived.weights.sum()) @ uploads, {}


@dataclass(frozen=True)
class Bucketing(Prepared):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise PluresError(f"{self.title}: size={self.size}; give the number of uploads of a bucket, 1 or more")

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return self.then is not None and self.then.chooses

    @property
    def least(self) -> int:
        return 1 if self.then is None else (self.then.least - 1) * self.size + 1

    def stands(self, uploads: int) -> int | None:
        return 0 if self.then is None else self.then.stands(-(-uploads // self.size))

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        order = arrived.cohort.draw("buckets", len(uploads)).argsort().to(uploads.device)
        buckets = torch.split(order, self.size)
        means, joint = (torch.stack([t[bucket].mean(0) for bucket in buckets]) for t in (uploads, arrived.joint))
        firsts = arrived.clients[torch.stack([bucket[0] for bucket in buckets]).cpu()]
        value, memory = self.finished(
            means, replace(arrived, weights=torch.ones_like(means[:, 0]), clients=firsts, joint=joint)
        )
        if COUNTS in memory:
            some = [b for b, counts in zip(buckets, memory[COUNTS].tolist(), strict=True) if counts]
            memory[COUNTS] = torch.zeros(len(uploads), dtype=torch.bool).index_fill(0, torch.cat(some).cpu(), True)
        return value, memory


@dataclass(frozen=True)
class Against(Prepared):
    """A preparation that is made against a number of hostile uploads.

    Attributes:
        f: number of uploads that may be hostile; it needs more than ``2 f``.
        joint: it judges whole uploads; otherwise each block apart.
    """

    f: int = 1
    joint: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        hostile(self.title, self.f)

    @property
    def least(self) -> int:
        return max(2 * self.f + 1, 1 if self.then is None else self.then.least)

    def stands(self, uploads: int) -> int | None:
        inner = 0 if self.then is None else self.then.stands(uploads)
        return inner if inner is None else min(inner, self.f)


@dataclass(frozen=True)
class Neighbours(Against):
    """Replace every upload by the mean of the ``n - f`` uploads nearest to it, its own included, then combine.

    Nearest-neighbour mixing (Allouah et al. 2023, Algorithm 2). All clients count the same. By name:
    ``fedavg+nnm(f=1)+krum(f=1)``.

    Attributes:
        f: number of uploads that may be hostile; it needs more than ``2 f``.
        joint: near are whole uploads; otherwise each block has its own neighbours.
        then: the combination of the means; without one, their mean.
    """

    title: ClassVar[str] = "nnm"

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        apart = distances(whole(uploads, arrived, self.joint))
        near = apart.argsort(dim=1, stable=True)[:, : len(uploads) - self.f]
        mixed = torch.zeros_like(apart).scatter_(1, near, 1 / near.shape[1])
        value, memory = self.finished(
            mixed @ uploads,
            replace(arrived, weights=torch.ones_like(uploads[:, 0]), joint=mixed.to(arrived.joint) @ arrived.joint),
        )
        memory.pop(COUNTS, None)
        return value, memory


@dataclass(frozen=True)
class Clipped(Against):
    """Shorten the longest changes to the length of the next, then combine (Allouah et al. 2025, ARC, Algorithm 2).

    ``floor(2 f (n - f) / n)`` changes are shortened. Without another combination, weights are those of the method. By
    name: ``fedavg+arc(f=1)+trimmed_mean(f=1)``.

    Attributes:
        f: number of uploads that may be hostile; it needs more than ``2 f``.
        joint: long are whole uploads; otherwise each block has its own lengths.
        then: the combination of the shortened uploads; without one, their weighted mean.
    """

    title: ClassVar[str] = "arc"
    mixes: ClassVar[bool] = False

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return self.then is not None and self.then.chooses

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        changes, n = whole(uploads, arrived, self.joint), len(uploads)
        bound = changes.norm(dim=1).sort(descending=True).values[2 * self.f * (n - self.f) // n]
        scale = shortening(changes, bound).unsqueeze(1)
        shorter = torch.where(scale < 1, arrived.old + scale * (uploads - arrived.old), uploads)
        return self.finished(shorter, replace(arrived, joint=scale.to(arrived.joint) * arrived.joint))
