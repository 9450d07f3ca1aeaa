"""How newcomers inherit models from the clients that took part: by metadata, never by examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method.setting import Setting


@dataclass(frozen=True)
class Regressed:
    """Ridge regression of the clients' values on their metadata, each column standardised, with a free intercept.

    ``theta(m) = mean theta + z(m) B`` with ``B = (Z'Z + ridge I)^-1 Z' Theta``. Without varying metadata it is the
    uniform mean; with ``ridge=0`` it is least squares, of minimal norm if that is not unique.

    Attributes:
        columns: metadata columns; none for all.
        ridge: strength of the shrinkage to the mean.
    """

    columns: tuple[str, ...] = ()
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise PluresError(f"ridge={self.ridge}: it must be a number of at least 0")

    def __call__(self, seen: Setting, newcomers: Setting) -> Tensor:
        known, new = standardised(self.columns, seen, newcomers)
        u, s, v = torch.linalg.svd(known, full_matrices=False)
        gain = torch.where(s > 1e-12 * s[:1], s / (s.square() + self.ridge), 0.0)
        weights: Tensor = 1 / len(known) + (new @ v.T * gain) @ u.T
        return weights


@dataclass(frozen=True)
class Nearest:
    """Uniform mean over the clients with the nearest standardised metadata, ties included.

    With one categorical column it is the mean of the newcomer's community.

    Attributes:
        columns: metadata columns; none for all.
        neighbours: number of clients; ties with the last one are added.
    """

    columns: tuple[str, ...] = ()
    neighbours: int = 1

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise PluresError(f"neighbours={self.neighbours}: give at least 1")

    def __call__(self, seen: Setting, newcomers: Setting) -> Tensor:
        known, new = standardised(self.columns, seen, newcomers)
        distance = (new[:, None] - known[None]).square().sum(-1)
        reach = distance.kthvalue(min(self.neighbours, len(known)), dim=1, keepdim=True).values
        near = (distance <= reach * (1 + 1e-9)).to(torch.float64)
        return near / near.sum(1, keepdim=True)


def standardised(columns: tuple[str, ...], seen: Setting, newcomers: Setting) -> tuple[Tensor, Tensor]:
    """Metadata of seen clients and newcomers ``(clients, numbers)``, centred and scaled by the seen clients.

    Numbers that do not vary among the seen clients are left out.
    """
    columns = columns or tuple(seen.metadata)
    known, new = (setting.numbers(columns).to("cpu", torch.float64) for setting in (seen, newcomers))
    center = known.mean(0)
    spread = (known - center).square().mean(0).sqrt()
    varied = spread > 1e-9 * center.abs()
    return tuple(((facts - center) / spread)[:, varied] for facts in (known, new))  # type: ignore[return-value]
