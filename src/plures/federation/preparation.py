"""What was fitted to a federation's data when it was built, so that raw rows become its inputs without them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.errors import PluresError


@dataclass(frozen=True)
class Preparation:
    """How missing values of raw rows are filled in, before the rows are scaled.

    Attributes:
        fill: ``(columns,)`` what a missing value of a raw row becomes.
        gaps: places of the columns that have a 0/1 input "is missing" behind all others.
    """

    fill: Tensor
    gaps: tuple[int, ...] = ()

    def completed(self, raw: Tensor, names: tuple[str, ...] = ()) -> Tensor:
        """Raw rows ``(n, columns)`` with missing values filled in, and the inputs that say which were missing.

        Rows that have these inputs already stay as they are.

        Args:
            raw: the rows; NaN is a missing value.
            names: of the inputs, for messages.

        Raises:
            PluresError: if a value is missing in a column in which none was when the data were built.
        """
        if raw.dim() != 2 or not self.gaps or raw.shape[1] != len(self.fill):
            return raw
        absent = raw.isnan()
        new = [place for place in absent.any(0).nonzero().flatten().tolist() if place not in self.gaps]
        if new:
            column = repr(names[new[0]]) if names else new[0]
            raise PluresError(f"column {column} lacks a value, and lacked none in the run's data: complete it")
        filled = torch.where(absent, self.fill.to(raw), raw)
        return torch.cat([filled, absent[:, list(self.gaps)].to(raw)], 1)
