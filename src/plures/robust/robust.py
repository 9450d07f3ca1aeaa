"""What all robust combinations have in common: they go on without uploads that are no numbers, and count the rest."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError, PluresWarning
from plures.method import Arrived, Leaves, Reducer

COUNTS, JUDGED = "counts", "judged"
"""In what :meth:`Robust.combined` returns as memory, the mask ``(n,)`` of the uploads that count; in the memory of a
combination that chooses, how often every client was judged and how often left out, ``(rows, 2, clients)``."""


class Robust(Reducer):
    """A combination that bounds what a few uploads can do, whatever they contain.

    Each row is combined by itself, so under a method with clusters every cluster needs enough members. Uploads with
    infinite or undefined numbers are left out, with a warning that names their clients.

    Attributes:
        title: name in messages.
        single: whether it must see the upload of each client, and not means of several (:class:`Bucketing`).
        chooses: whether it leaves whole uploads out, and counts how often each client's.
    """

    title: ClassVar[str]
    single: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    @property
    def least(self) -> int:
        """The number of uploads that it needs."""
        return 1

    def check(self, clients: int) -> None:
        """Refuse a federation that is too small, before anything is trained.

        Args:
            clients: size of the federation.
        """
        if clients < self.least:
            raise PluresError(
                f"{self.title}: it needs the uploads of at least {self.least} clients, and the federation has {clients}"
                f"{self.remedy}"
            )

    @property
    def remedy(self) -> str:
        """What to do where uploads are too few."""
        return ": lower f" if getattr(self, "f", 0) else ""

    def stands(self, uploads: int) -> int | None:
        """How many hostile uploads of some it is made to stand; ``None`` if no number is promised.

        Args:
            uploads: number of uploads to a row.
        """
        return int(getattr(self, "f", 0)) if uploads >= self.least else 0

    def start(self, value: Tensor, population: int) -> Leaves:
        judged = value.new_zeros(len(value), 2, population, dtype=torch.int64)
        return self.remembers(value, population) | ({JUDGED: judged} if self.chooses else {})

    def remembers(self, value: Tensor, population: int) -> Leaves:
        """Its initial memory, as in :meth:`start`, without what is counted for all."""
        return {}

    def reduce(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, Leaves]:
        everybody, sound = arrived.clients.tolist(), uploads.isfinite().all(1) & arrived.joint.isfinite().all(1)
        if not sound.all():
            names = [arrived.cohort.setting.clients[i] for i in arrived.clients[~sound.cpu()].tolist()]
            warnings.warn(
                f"{self.title}: round {arrived.cohort.round + 1} goes on without {', '.join(map(repr, names))}, whose "
                "upload has infinite or undefined numbers",
                PluresWarning,
                stacklevel=2,
            )
            uploads, arrived = uploads[sound], among(arrived, sound)
        if 0 < (n := len(uploads)) < self.least:
            fewer = (
                f"{self.title}: it needs at least {self.least} uploads to a model, and round {arrived.cohort.round + 1}"
            )
            raise PluresError(f"{fewer} brought {n}: draw more clients in each round{self.remedy.replace(':', ', or')}")
        value, memory = self.combined(uploads, arrived) if len(uploads) else (arrived.old, dict(arrived.memory))
        counting = memory.pop(COUNTS, None)
        if JUDGED in arrived.memory:
            judged, counting = arrived.memory[JUDGED].clone(), torch.zeros(0) if counting is None else counting
            counted = set(arrived.clients[counting.cpu().nonzero().flatten()].tolist())
            judged[0, everybody] += 1
            judged[1, [client for client in everybody if client not in counted]] += 1
            memory[JUDGED] = judged
        return value, memory

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`reduce`, of enough uploads, all finite; one that chooses says which count under :data:`COUNTS`."""
        raise NotImplementedError


def among(arrived: Arrived, some: Tensor) -> Arrived:
    """What is known about some of the uploads.

    Args:
        arrived: what is known about all.
        some: ``(n,)`` a mask, or positions.
    """
    return replace(
        arrived,
        weights=arrived.weights[some],
        clients=arrived.clients[some.cpu()],
        joint=arrived.joint[some],
    )


def whole(uploads: Tensor, arrived: Arrived, joint: bool) -> Tensor:
    """``(n, d)`` what clients are judged by: the changes of their whole uploads, or of this block alone."""
    return arrived.joint.to(torch.float64) if joint else uploads - arrived.old


def hostile(title: str, f: int) -> None:
    """Check the number of uploads that may be hostile."""
    if isinstance(f, bool) or f < 0:
        raise PluresError(f"{title}: f={f}; give the number of uploads that may be hostile, 0 or more")


def weighed_mean(uploads: Tensor, weights: Tensor) -> Tensor:
    """``(d,)`` the weighted mean of uploads ``(n, d)``."""
    return (weights / weights.sum()) @ uploads
