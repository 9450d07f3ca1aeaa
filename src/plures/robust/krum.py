"""Krum and what is built on it: uploads count if others are near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.robust.coordinates import nearest_to_median
from plures.robust.robust import COUNTS, Robust, hostile, whole


@dataclass(frozen=True)
class Krum(Robust):
    """The upload nearest to the others (Blanchard et al. 2017, section 4).

    An upload's score is the sum of its ``n - f - 2`` smallest squared distances to others. Of equal scores, the client
    listed first is chosen. Sizes of clients do not count.

    Attributes:
        f: number of uploads that may be hostile; it needs ``n >= 2 f + 3``.
        joint: choose once, by the whole upload; otherwise for each block apart.
    """

    title: ClassVar[str] = "krum"
    chooses: ClassVar[bool] = True

    f: int = 1
    joint: bool = True

    def __post_init__(self) -> None:
        hostile(self.title, self.f)

    @property
    def least(self) -> int:
        return 2 * self.f + 3

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        apart = distances(whole(uploads, arrived, self.joint))
        chosen = int(scores(apart, self.f).argmin())
        return uploads[chosen], {COUNTS: picked([chosen], uploads)}


@dataclass(frozen=True)
class MultiKrum(Robust):
    """The mean of the uploads with the best scores of :class:`Krum` (Blanchard et al. 2017, section 4.1).

    Attributes:
        f: number of uploads that may be hostile; it needs ``n >= 2 f + 3``.
        keep: number of uploads that count; default ``n - f``.
        joint: choose once, by the whole upload; otherwise for each block apart.
    """

    title: ClassVar[str] = "multi_krum"
    chooses: ClassVar[bool] = True

    f: int = 1
    keep: int | None = None
    joint: bool = True

    def __post_init__(self) -> None:
        hostile(self.title, self.f)
        if self.keep is not None and self.keep < 1:
            raise PluresError(f"{self.title}: keep={self.keep}; give the number of uploads that count, 1 or more")

    @property
    def least(self) -> int:
        return max(2 * self.f + 3, self.keep or 0)

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        found = scores(distances(whole(uploads, arrived, self.joint)), self.f)
        keep = len(uploads) - self.f if self.keep is None else self.keep
        chosen = found.argsort(stable=True)[:keep].sort().values
        return uploads[chosen].mean(0), {COUNTS: picked(chosen.tolist(), uploads)}


@dataclass(frozen=True)
class Bulyan(Krum):
    """Krum again and again, then of every coordinate the values nearest the median (El Mhamdi et al. 2018, section 4).

    Krum chooses ``n - 2 f`` uploads one by one, each among those left. Of these, every coordinate is the mean of the
    ``n - 4 f`` values nearest its median. Of two uploads that are equally good, as the last ones always are, the client
    listed first is chosen. It needs ``n >= 4 f + 3``.
    """

    title: ClassVar[str] = "bulyan"

    @property
    def least(self) -> int:
        return 4 * self.f + 3

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        apart = distances(whole(uploads, arrived, self.joint))
        left, chosen = list(range(len(uploads))), []
        for _ in range(len(uploads) - 2 * self.f):
            among = torch.tensor(left, device=apart.device)
            chosen.append(left.pop(int(scores(apart[among][:, among], self.f).argmin())))
        value = nearest_to_median(uploads[sorted(chosen)], len(uploads) - 4 * self.f)
        return value, {COUNTS: picked(chosen, uploads)}


def picked(chosen: list[int], uploads: Tensor) -> Tensor:
    """``(n,)`` a mask of some uploads."""
    return torch.zeros(len(uploads), dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)


def distances(rows: Tensor) -> Tensor:
    """``(n, n)`` squared distances of rows ``(n, d)``."""
    return torch.stack([(rows - row).square().sum(1) for row in rows])


def scores(apart: Tensor, f: int) -> Tensor:
    """``(n,)`` the sums of the ``n - f - 2`` smallest squared distances to others, at least of one.

    Args:
        apart: ``(n, n)`` squared distances.
        f: number of uploads that may be hostile.
    """
    near = max(1, len(apart) - f - 2)
    return apart.sort(1).values[:, 1 : 1 + near].sum(1)
