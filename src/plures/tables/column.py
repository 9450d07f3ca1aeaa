"""Declared input columns: what a cell may hold, its encoding as numbers, and what is fitted to train rows."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from plures.brief import brief
from plures.content import by_content
from plures.errors import closest
from plures.tables.declared import Declared, Finite, Name, Names, Share
from plures.tables.finding import Finding
from plures.tables.marks import like, read_days
from plures.tables.table import Cells, each, gaps_of, numbers, text, texts
from plures.tables.units import guess

L = TypeVar("L", bound="Levels")
S = TypeVar("S", bound="Scaled")

LISTED = 5
COMMA = re.compile(r"(-?\d+),(\d+)")


@brief
@by_content
@dataclass(frozen=True)
class Read:
    """A parsed column.

    Attributes:
        values: ``(n,)`` numbers, or indices of levels; NaN if missing or wrong.
        missing: ``(n,)`` whether each cell is missing (a wrong one is not).
        findings: what is wrong with it.
        texts: ``(n,)`` the cells of a column of levels; none for numbers.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    findings: tuple[Finding, ...]
    texts: tuple[str, ...] = ()

    @property
    def content(self) -> list[str]:
        """What identifies each cell, whatever is fitted to the column."""
        return list(self.texts) or [repr(value + 0.0) for value in self.values.tolist()]


class Scaled(Declared):
    """A column that is one number.

    Attributes:
        name: name of the column.
        center: value to subtract; also fills a missing value, which becomes 0.
        scale: value to divide by after that.
        missing: largest share of missing values at a site.
    """

    name: Name
    center: Finite = 0.0
    scale: Annotated[Finite, Field(gt=0)] = 1.0
    missing: Share = 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        return (self.name, f"{self.name} is missing") if self.missing else (self.name,)

    @property
    def scaling(self) -> tuple[tuple[float, float], ...]:
        """Center and scale of each of its inputs."""
        return ((self.center, self.scale), (0.0, 1.0))[: len(self.inputs)]

    def encode(self, read: Read, scaled: bool = True) -> NDArray[np.float64]:
        """``(n, inputs)`` numbers: scaled, with gaps filled and indicated."""
        filled = np.where(np.isnan(read.values), self.center, read.values)
        shown = (filled - self.center) / self.scale if scaled else filled
        return np.stack([shown, read.missing.astype(np.float64)][: len(self.inputs)], axis=1)

    def fitted(self: S, read: Read, rows: NDArray[np.int64]) -> S | None:
        """The column with the mean and the standard deviation of some rows; ``None`` if none of them has a value."""
        known = read.values[rows][~np.isnan(read.values[rows])]
        if not len(known):
            return None
        constant = bool((known == known[0]).all())
        center = known[0] if constant else known.mean()
        moments = {"center": float(center), "scale": 1.0 if constant else float(known.std())}
        return self.model_copy(update=moments)


class Number(Scaled):
    """A column of numbers.

    Attributes:
        unit: unit of its values, for messages.
        low: least allowed value.
        high: largest allowed value.
        zero_is_missing: whether zero means a missing value.
        marks: further texts that mean a missing value, such as ``unknown``.
    """

    kind: Literal["number"] = "number"
    unit: Name | None = None
    low: Finite | None = None
    high: Finite | None = None
    zero_is_missing: bool = False
    marks: Names = ()

    @model_validator(mode="after")
    def _ordered(self) -> Number:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low:g} must not be above high={self.high:g}")
        return self

    def read(self, cells: Cells, missing: float | None = None) -> Read:
        """Numbers of a column, and what is wrong with them; ``missing`` replaces the declared share."""
        values, wrong = numbers(cells)
        if self.marks:
            wrong &= np.array(each(cells, lambda cell: text(cell) not in self.marks), dtype=bool)
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


class Date(Scaled):
    """A column of dates; its input is the number of days since 1970, scaled.

    Attributes:
        format: how its texts are written, such as ``%d.%m.%Y``; the ISO format if not given.
        center: number of days since 1970 to subtract; also fills a missing value.
        scale: number of days to divide by after that.
    """

    kind: Literal["date"] = "date"
    format: str | None = None

    def read(self, cells: Cells, missing: float | None = None) -> Read:
        """Days since 1970, and what is wrong with the cells; ``missing`` replaces the declared share."""
        values, gaps, wrong = read_days(cells, self.format)
        found: list[Finding] = []
        if wrong.any():
            first = str(cells[int(wrong.argmax())])
            what = f"{_plural(wrong, 'cell is not a date', 'cells are not dates')}, the first holds {first!r}"
            found.append(
                _error(self.name, wrong, what, f"write dates like {like(self.format)}, or leave the cell empty")
            )
        return Read(values, gaps, (*found, *_gaps(self.name, gaps, self.missing if missing is None else missing)))


class Levels(Declared):
    """A column of names or codes.

    A cell matches a level by its text: ``1``, ``1.0`` and ``"1"`` are the level ``"1"``.

    Attributes:
        name: name of the column.
        levels: all known values, in order.
        other: whether any other value is allowed; it is an input of its own.
        missing: largest share of missing values at a site; if not zero, missing is an input of its own.
    """

    name: Name
    levels: Annotated[Names, Field(min_length=1)]
    other: bool = False
    missing: Share = 0.0

    @model_validator(mode="after")
    def _distinct(self: L) -> L:
        twice = [level for level, times in Counter(map(text, self.levels)).items() if times > 1]
        if twice:
            raise ValueError(f"level {twice[0]!r} is declared twice")
        return self

    @property
    def marks(self) -> tuple[str, ...]:
        """Inputs that say what no level does."""
        other = (f"{self.name} is another value",) if self.other else ()
        return (*other, f"{self.name} is missing") if self.missing else other

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        return (*(f"{self.name}={level}" for level in self.levels), *self.marks)

    @property
    def scaling(self) -> tuple[tuple[float, float], ...]:
        """Center and scale of each of its inputs: 0 and 1."""
        return ((0.0, 1.0),) * len(self.inputs)

    def read(self, cells: Cells, missing: float | None = None, noun: str = "levels") -> Read:
        """Indices of the cells' levels, and what is wrong with them; ``missing`` replaces the declared share.

        Another value has the index after that of the last level, if it is allowed.
        """
        places = {text(level): place for place, level in enumerate(self.levels)}
        gaps = gaps_of(cells)
        words = texts(cells)
        unknown = float(len(places)) if self.other else np.nan
        values = np.array([places.get(word, unknown) for word in words], dtype=np.float64)
        values[gaps] = np.nan
        found = self._unknown(np.array(words, dtype=object), np.isnan(values) & ~gaps, noun)
        wrong = (*found, *_gaps(self.name, gaps, self.missing if missing is None else missing))
        return Read(values, gaps, wrong, tuple(words))

    def _unknown(self, texts: NDArray[Any], wrong: NDArray[np.bool_], noun: str) -> list[Finding]:
        kinds = list(dict.fromkeys(texts[wrong].tolist()))
        listed = ", ".join(self.levels[: 2 * LISTED]) + (", ..." if len(self.levels) > 2 * LISTED else "")
        found = []
        for kind in kinds[:LISTED]:
            rows = wrong & (texts == kind)
            what = f"{_plural(rows, 'row holds', 'rows hold')} {kind!r}, which is not one of the {noun} {listed}"
            near = closest(kind, self.levels)
            found.append(
                _error(
                    self.name, rows, what, f"did you mean {near!r}?" if near else f"use one of the {noun.rstrip(',')}"
                )
            )
        if kinds[LISTED:]:
            rows = wrong & np.isin(texts, kinds[LISTED:])
            what = f"{len(kinds) - LISTED} other values that are not among the {noun}"
            found.append(_error(self.name, rows, what, f"use one of the {noun.rstrip(',')}"))
        return found

    def encode(self, read: Read, scaled: bool = True) -> NDArray[np.float64]:
        """``(n, inputs)``: what the levels are encoded as, and 0 or 1 for another value and for a missing one."""
        other = read.values == len(self.levels)
        marks = [*([other] if self.other else []), *([read.missing] if self.missing else [])]
        return np.column_stack([self._levels(read.values), *marks]).astype(np.float64)

    def _levels(self, values: NDArray[np.float64]) -> NDArray[Any]:
        """The inputs of the levels, one-hot."""
        return np.equal(values[:, None], np.arange(len(self.levels)))

    def fitted(self: L, read: Read, rows: NDArray[np.int64]) -> L | None:
        """The column as some rows determine it; ``None`` if none of them has a value."""
        return None if read.missing[rows].all() else self

    def moved(self, read: Read, levels: Names) -> Read:
        """Cells that were read by a column with other levels, as this one reads them."""
        if levels == self.levels:
            return read
        other = float(len(self.levels)) if self.other else np.nan
        places = {level: float(place) for place, level in enumerate(self.levels)}
        now = np.array([*(places.get(level, other) for level in levels), other])
        known = ~np.isnan(read.values)
        values = read.values.copy()
        values[known] = now[read.values[known].astype(np.int64)]
        return replace(read, values=values)


class Category(Levels):
    """A column of names or codes; one 0/1 input for each."""

    kind: Literal["category"] = "category"

    def fitted(self, read: Read, rows: NDArray[np.int64]) -> Category | None:
        """The column with those of its levels that occur in some rows; ``None`` if none does.

        Without an input for other values, all levels stay.
        """
        if not self.other:
            return super().fitted(read, rows)
        there = {int(place) for place in read.values[rows][~np.isnan(read.values[rows])]}
        levels = tuple(level for place, level in enumerate(self.levels) if place in there)
        return self.model_copy(update={"levels": levels}) if levels else None


class Ordered(Levels):
    """A column of levels in an order; one input, from 0 for the first level to 1 for the last."""

    kind: Literal["ordered"] = "ordered"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        return (self.name, *self.marks)

    def _levels(self, values: NDArray[np.float64]) -> NDArray[Any]:
        last = len(self.levels) - 1
        return np.where(values <= last, values, 0.0) / max(last, 1)


class Boolean(Levels):
    """A column of two values, of which the second is true; one 0/1 input."""

    kind: Literal["boolean"] = "boolean"
    levels: Annotated[Names, Field(min_length=2, max_length=2)]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs derived from it."""
        return (self.name, *self.marks)

    def _levels(self, values: NDArray[np.float64]) -> NDArray[Any]:
        return np.equal(values, 1)


AnyColumn = Number | Category | Ordered | Boolean | Date


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
