"""Subgroups of examples inside clients, such as age bands: results are reported for each, and no model reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.cells import absent, number
from plures.errors import PluresError

Array = NDArray[Any]
MOST = 20
"""Most subgroups of one column."""
FEW = 6
"""A column of numbers with more different values is cut into bands."""
BANDS = 3
"""Number of bands if none are stated: of about as many train rows each."""
MISSING = "missing"
"""The subgroup of the examples without a value."""


@brief
@dataclass(frozen=True)
class Subgroups:
    """The subgroups of one column.

    Attributes:
        names: of the subgroups.
        codes: ``(examples,)`` int64 position of every example's subgroup in ``names``, on the CPU.
    """

    names: tuple[str, ...]
    codes: Tensor


def parsed(column: str) -> tuple[str, tuple[float, ...]]:
    """A column and the edges of its bands: ``age:40,60`` is ``("age", (40.0, 60.0))``.

    Raises:
        PluresError: if the edges do not increase.
    """
    parts = re.fullmatch(r"(.+):([-+\d.eE, ]+)", column, re.DOTALL)
    found = [number(edge) for edge in parts[2].split(",")] if parts else []
    edges = [edge for edge in found if edge is not None]
    if parts is None or len(edges) < len(found):
        return column, ()
    if any(high <= low for low, high in pairwise(edges)):
        raise PluresError(f"subgroups {column!r}: the edges of bands must increase")
    return parts[1], tuple(edges)


def subgroups_of(column: str, values: Array, edges: Sequence[float], train: Array) -> Subgroups:
    """The subgroups of a column: its values, or bands of its numbers.

    Numbers with more than six different values are cut at the edges given, or else into three bands of about as many
    train rows each. Examples without a value are a subgroup of their own.

    Args:
        column: its name.
        values: ``(examples,)``.
        edges: of bands, in increasing order; a value that equals an edge is above it. None to choose.
        train: positions of the train rows, which alone decide about bands that are not stated.

    Raises:
        PluresError: if the column has too many different texts, or bands are stated but its values are no numbers.
    """
    if values.ndim != 1:
        raise PluresError(f"subgroups {column!r}: values of shape {values.shape}; give one value for each example")
    cells = values.tolist()
    gaps = absent(cells)
    numbers = _numbers(cells, gaps)
    said = cells if numbers is None else numbers.tolist()
    texts = np.array([MISSING if gap else _text(cell) for cell, gap in zip(said, gaps.tolist(), strict=True)])
    different = sorted({*texts[~gaps].tolist()})
    if edges and numbers is None:
        raise PluresError(f"subgroups {column!r}: bands are for numbers, but values are {', '.join(different[:3])}")
    if numbers is not None and (edges or len(different) > FEW):
        edges = edges or _edges(numbers[train][~gaps[train]])
        names, codes = _bands(edges), np.searchsorted(edges, numbers, side="right")
    else:
        if len(different) > MOST:
            raise PluresError(
                f"subgroups {column!r}: {len(different)} different values, such as {different[0]!r}; give a column "
                f"with at most {MOST}, or numbers, which are cut into bands"
            )
        different = different if numbers is None else sorted(different, key=float)
        names, place = tuple(different), {name: position for position, name in enumerate(different)}
        codes = np.array([place.get(text, 0) for text in texts.tolist()], dtype=np.int64)
    if gaps.any():
        own = names.index(MISSING) if MISSING in names else len(names)
        names, codes = (*names[:own], MISSING, *names[own + 1 :]), np.where(gaps, own, codes)
    return Subgroups(names, torch.from_numpy(codes.astype(np.int64)))


def _text(cell: object) -> str:
    """A cell as text; numbers with six digits."""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell).strip()


def _numbers(cells: Sequence[Any], gaps: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """The values as numbers, NaN where they are missing; ``None`` if one of them is none."""
    found = np.full(len(cells), np.nan)
    for place in np.flatnonzero(~gaps).tolist():
        cell = cells[place]
        read = number(cell) if isinstance(cell, str) else None if isinstance(cell, bool) else cell
        if not isinstance(read, int | float) or not np.isfinite(read):
            return None
        found[place] = read
    return found


def _edges(known: NDArray[np.float64]) -> tuple[float, ...]:
    """Edges of bands with about as many of the values each; whole numbers if the values are."""
    if not len(known):
        return ()
    cuts = np.quantile(known, np.arange(1, BANDS) / BANDS, method="higher")
    return tuple(sorted({float(f"{cut:.6g}") for cut in cuts.tolist() if cut > known.min()}))


def _bands(edges: Sequence[float]) -> tuple[str, ...]:
    if not edges:
        return ("all",)
    texts = [f"{edge:.6g}" for edge in edges]
    between = [f"{low} to below {high}" for low, high in pairwise(texts)]
    return (f"below {texts[0]}", *between, f"{texts[-1]} or more")
