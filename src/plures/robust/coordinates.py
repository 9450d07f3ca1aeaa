"""Medians and trimmed means, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plures.method import Arrived
from plures.robust.robust import Robust, hostile


@dataclass(frozen=True)
class Median(Robust):
    """The median of every coordinate (Yin et al. 2018, Definition 1); of an even number, the mean of the middle two.

    All clients count the same.
    """

    title: ClassVar[str] = "median"

    def stands(self, uploads: int) -> int:
        return (uploads - 1) // 2

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        return middle(uploads), {}


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The mean of every coordinate without its ``f`` lowest and ``f`` highest values (Yin et al. 2018, Definition 2).

    All clients count the same.

    Attributes:
        f: number of uploads that may be hostile; it needs more than ``2 f``.
    """

    title: ClassVar[str] = "trimmed_mean"

    f: int = 1

    def __post_init__(self) -> None:
        hostile(self.title, self.f)

    @property
    def least(self) -> int:
        return 2 * self.f + 1

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        return uploads.sort(0).values[self.f : len(uploads) - self.f].mean(0), {}


def middle(uploads: Tensor) -> Tensor:
    """``(d,)`` the median of every coordinate of ``(n, d)``."""
    ordered, n = uploads.sort(0).values, len(uploads)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def nearest_to_median(uploads: Tensor, count: int) -> Tensor:
    """``(d,)`` for every coordinate, the mean of the values nearest its median; equally near ones share the places.

    Args:
        uploads: ``(n, d)``.
        count: number of values.
    """
    apart = (uploads - middle(uploads)).abs()
    last = apart.sort(0).values[count - 1]
    inside, rim = apart < last * (1 - 1e-12), (apart - last).abs() <= last * 1e-12
    share = inside + rim * (count - inside.sum(0)).to(uploads.dtype) / rim.sum(0)
    return (share * uploads).sum(0) / count
