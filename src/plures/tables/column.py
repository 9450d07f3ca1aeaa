"""Declared input columns: what a cell may hold, and its encoding as numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from plures.brief import brief
from plures.errors import closest
from plures.tables.declared import Declared, Finite, Name, Names, Share
from plures.tables.finding import Finding
from plures.tables.table import Cells, absent, numbers, text
from plures.tables.units import guess

LISTED = 5
COMMA = re.compile(r"(-?\d+),(\d+)")


@brief
@dataclass(frozen=True)
class Read:
    """A parsed column.

    Attributes:
        values: ``(n,)`` numbers, or indices of levels; NaN if missing or wrong.
        missing: ``(n,)`` whether each cell is missing (a wrong one is not).
        findings: what is wrong with it.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    findings: tuple[Finding, ...]


class Number(Declared):
    """A column of numbers.

    Attributes:
        name: name of the column.
        unit: unit of its values, for messages.
        low: least allowed value.
        high: largest allowed value.
        zero_is_missing: whether zero means a missing value.
        center: value to subtract; also fills a missing value, which becomes 0.
        scale: value to divide by after that.
        missing: largest share of missing values at a site.
    """

    kind: Literal["number"] = "number"
    name: Name
    unit: Name | None = None
    low: Finite | None = None
    high: Finite | None = None
    zero_is_missing: bool = False
    center: Finite = 0.0
    scale: Annotated[Finite, Field(gt=0)] = 1.0
    missing: Share = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Number:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low:g} must not be above high={self.high:g}")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        return (self.name, f"{self.name} is missing") if self.missing else (self.name,)

    @property
    def scaling(self) -> tuple[tuple[float, float], ...]:
        """Center and scale of each of its inputs."""
        return ((self.center, self.scale), (0.0, 1.0))[: len(self.inputs)]

    def read(self, cells: Cells, missing: float | None = None) -> Read:
        """Numbers of a column, and what is wrong with them; ``missing`` replaces the declared share."""
        values, wrong = numbers(cells)
        if self.zero_is_missing:
            values[values == 0] = np.nan
        gaps = np.isnan(values) & ~wrong
        with np.errstate(over="ignore", invalid="ignore"):
            wild = np.abs((values - self.center) / self.scale) > np.finfo(np.float32).max
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        outside = ((values < low) | (values > high)) & ~wild
        found: list[Finding] = []
        if wrong.any():
            found.append(self._text(cells, wrong))
        if wild.any():
            found.append(
                _error(self.name, wild, "an infinite value, or one too large for a 32-bit number", "correct it")
            )
        if outside.any():
            hint = guess(values[~np.isnan(values) & ~wild], low, high, self.unit)
            found.append(
                _error(
                    self.name,
                    outside,
                    f"{_plural(outside, 'value lies', 'values lie')} outside {self.allowed}, "
                    f"the first is {values[outside][0]:g}",
                    hint or "correct what is wrong, or leave the cell empty",
                )
            )
        found += _gaps(self.name, gaps, self.missing if missing is None else missing)
        return Read(values, gaps, tuple(found))

    @property
    def allowed(self) -> str:
        """The range as text."""
        unit = f" {self.unit}" if self.unit else ""
        if self.low is None or self.high is None:
            bounds = [f"at least {self.low:g}"] if self.low is not None else []
            bounds += [f"at most {self.high:g}"] if self.high is not None else []
            return f"the range ({bounds[0] if bounds else 'any number'}{unit})"
        return f"the range {self.low:g} to {self.high:g}{unit}"

    def _text(self, cells: Cells, wrong: NDArray[np.bool_]) -> Finding:
        first = str(cells[int(wrong.argmax())])
        comma = COMMA.fullmatch(first.strip())
        remedy = f"write {comma[1]}.{comma[2]} with a point" if comma else "write a number, or leave the cell empty"
        what = f"{_plural(wrong, 'cell is not a number', 'cells are not numbers')}, the first holds {first!r}"
        return _error(self.name, wrong, what, remedy)

    def encode(self, read: Read, scaled: bool = True) -> NDArray[np.float64]:
        """``(n, inputs)`` numbers: scaled, with gaps filled and indicated."""
        filled = np.where(np.isnan(read.values), self.center, read.values)
        shown = (filled - self.center) / self.scale if scaled else filled
        return np.stack([shown, read.missing.astype(np.float64)][: len(self.inputs)], axis=1)


class Category(Declared):
    """A column of names or codes; one 0/1 input for each.

    A cell matches a level by its text: ``1``, ``1.0`` and ``"1"`` are the level ``"1"``.

    Attributes:
        name: name of the column.
        levels: all allowed values, in the order of their inputs.
        missing: largest share of missing values at a site; if not zero, missing is a level of its own.
    """

    kind: Literal["category"] = "category"
    name: Name
    levels: Annotated[Names, Field(min_length=1)]
    missing: Share = 0.0

    @model_validator(mode="after")
    def _distinct(self) -> Category:
        twice = [level for level, times in Counter(map(text, self.levels)).items() if times > 1]
        if twice:
            raise ValueError(f"level {twice[0]!r} is declared twice")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        own = tuple(f"{self.name}={level}" for level in self.levels)
        return (*own, f"{self.name} is missing") if self.missing else own

    @property
    def scaling(self) -> tuple[tuple[float, float], ...]:
        """Center and scale of each of its inputs: 0 and 1."""
        return ((0.0, 1.0),) * len(self.inputs)

    def read(self, cells: Cells, missing: float | None = None, noun: str = "levels") -> Read:
        """Indices of the cells' levels, and what is wrong with them; ``missing`` replaces the declared share."""
        places = {text(level): place for place, level in enumerate(self.levels)}
        gaps = np.array([absent(cell) for cell in cells], dtype=bool)
        texts = ["" if gap else text(cell) for cell, gap in zip(_plain(cells), gaps.tolist(), strict=True)]
        values = np.array([places.get(cell, np.nan) for cell in texts], dtype=np.float64)
        values[gaps] = np.nan
        found = self._unknown(np.array(texts, dtype=object), np.isnan(values) & ~gaps, noun)
        return Read(values, gaps, (*found, *_gaps(self.name, gaps, self.missing if missing is None else missing)))

    def _unknown(self, texts: NDArray[Any], wrong: NDArray[np.bool_], noun: str) -> list[Finding]:
        kinds = list(dict.fromkeys(texts[wrong].tolist()))
        listed = ", ".join(self.levels[: 2 * LISTED]) + (", ..." if len(self.levels) > 2 * LISTED else "")
        found = []
        for kind in kinds[:LISTED]:
            rows = wrong & (texts == kind)
            what = f"{_plural(rows, 'row holds', 'rows hold')} {kind!r}, which is not one of the {noun} {listed}"
            near = closest(kind, self.levels)
            found.append(_error(self.name, rows, what, f"did you mean {near!r}?" if near else f"use one of the {noun}"))
        if kinds[LISTED:]:
            rows = wrong & np.isin(texts, kinds[LISTED:])
            what = f"{len(kinds) - LISTED} other values that are not among the {noun}"
            found.append(_error(self.name, rows, what, f"use one of the {noun}"))
        return found

    def encode(self, read: Read, scaled: bool = True) -> NDArray[np.float64]:
        """``(n, inputs)`` one-hot."""
        hot = read.values[:, None] == np.arange(len(self.levels))
        return np.column_stack([hot, read.missing][: 2 if self.missing else 1]).astype(np.float64)


def _plain(cells: Cells) -> list[Any]:
    found: list[Any] = cells.tolist() if isinstance(cells, np.ndarray) else cells
    return found


def _gaps(column: str, gaps: NDArray[np.bool_], share: float) -> list[Finding]:
    count, n = int(gaps.sum()), len(gaps)
    if count <= share * n + 1e-9:
        return []
    allowed = f"at most {100 * share:g} % may be" if share else "none may be"
    what = f"missing in {count} of {n} rows ({100 * count / n:.3g} %), but {allowed}"
    remedy = "complete them, or ask the coordinator to allow more" if share else "complete them or leave the rows out"
    return [_error(column, gaps, what, remedy)]


def _error(column: str, rows: NDArray[np.bool_], what: str, remedy: str) -> Finding:
    return Finding("error", column, what, remedy, tuple((np.flatnonzero(rows) + 1).tolist()))


def _plural(rows: NDArray[np.bool_], one: str, many: str) -> str:
    n = int(rows.sum())
    return f"{n} {one if n == 1 else many}"
