"""Columns of the named data sets as numbers, in their data and in new rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.cells import MARKS, absent, nearly_number, number, place
from plures.errors import PluresError, suggestion

Array = NDArray[Any]


class Frame(Protocol):
    """A pandas or polars frame."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True)
class Column:
    """How cells of a table column become numbers, as determined when the data were built.

    Attributes:
        name: of the column.
        levels: the values that have an input each, as texts; ``None`` for a column of numbers.
        gap: whether an input for missing values follows those of the levels.
        lenient: whether a text that is not a number counts as missing; only in files of earlier versions.
    """

    name: str
    levels: tuple[str, ...] | None = None
    gap: bool = False
    lenient: bool = False

    @property
    def width(self) -> int:
        """Number of inputs made from it."""
        return 1 if self.levels is None else len(self.levels) + self.gap

    def encoded(self, cells: Sequence[Any], lines: Sequence[int] = ()) -> Array:
        """``(n, width)`` float64; NaN where a number is missing.

        Args:
            cells: of the column.
            lines: the line of each row in a text file, for messages, if they come from one.

        Raises:
            PluresError: for a value that did not occur when the data were built.
        """
        gaps = absent(cells).tolist()
        rows = [(place(row, lines), pair) for row, pair in enumerate(zip(cells, gaps, strict=True))]
        if self.levels is None:
            values = [np.nan if gap else self._number(cell, where) for where, (cell, gap) in rows]
            return np.array(values).reshape(-1, 1)
        places = [len(self.levels) if gap else self._place(_text(cell), where) for where, (cell, gap) in rows]
        if not self.gap and any(gaps):
            where = place(gaps.index(True), lines)
            raise PluresError(
                f"column {self.name!r}, {where}: a missing value; the run's data had none in it: complete it"
            )
        return np.eye(self.width)[places].reshape(-1, self.width)

    def _number(self, cell: Any, where: str) -> float:
        found = number(str(cell)) if isinstance(cell, str) else None
        if isinstance(cell, int | float) and abs(cell) <= sys.float_info.max:
            found = float(cell)
        if found is None and isinstance(cell, str) and (self.lenient or cell.strip() in MARKS):
            if self.lenient and "," in cell and nearly_number(cell):
                raise PluresError(f"column {self.name!r}, {where}: {cell!r} has a comma; write a decimal point")
            return float("nan")
        if found is None:
            raise PluresError(f"column {self.name!r}, {where}: {cell!r} is not a finite number; correct it")
        return found

    def _place(self, text: str, where: str) -> int:
        """Index of a level; the same number or boolean in another notation is the same level."""
        levels = self.levels or ()
        if text in levels:
            return levels.index(text)
        if set(levels) <= {"True", "False"} and text.strip().capitalize() in levels:
            return levels.index(text.strip().capitalize())
        values = [number(level) for level in levels]
        if number(text) in values and None not in values:
            return values.index(number(text))
        raise PluresError(
            f"column {self.name!r}, {where}: {text!r} did not occur in the run's data; "
            f"{suggestion(text, levels, 'its values are')}"
        )


@brief
@dataclass(frozen=True)
class Encoded:
    """A table column as numbers.

    Attributes:
        names: of the inputs made from it.
        values: ``(n, len(names))``.
        numeric: whether it is a number, which can be standardised.
        missing: ``(n,)`` how many of the row's cells are missing and not shown as NaN.
        column: how cells become these numbers.
    """

    names: tuple[str, ...]
    values: Array
    numeric: bool
    missing: Array
    column: Column


def encode(column: str, values: Array, category: bool) -> Encoded:
    """Inputs of a column: a number as it is, anything else as one 0/1 input for each of its values and for missing.

    Args:
        column: its name.
        values: ``(n,)`` numbers, or texts with ``None`` for a missing one.
        category: whether numbers are codes.
    """
    if values.dtype.kind in "iuf" and not category:
        return Encoded((column,), values[:, None], True, np.zeros(len(values), dtype=np.int64), Column(column))
    cells = values.tolist()
    gaps = absent(cells)
    text = np.array(["missing" if gap else _text(cell) for cell, gap in zip(cells, gaps.tolist(), strict=True)])
    levels = sorted(set(text[~gaps].tolist()))
    if all(number(level) is not None for level in levels):
        levels.sort(key=lambda level: (float(level), level))
    hot = [(text == level) & ~gaps for level in levels] + ([gaps] if gaps.any() else [])
    names = [f"{column}={level}" for level in levels] + ([f"{column} is missing"] if gaps.any() else [])
    made = Column(column, tuple(levels), bool(gaps.any()))
    return Encoded(tuple(names), np.stack(hot, axis=1).astype(np.float32), False, gaps.astype(np.int64), made)


def _text(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def cells_of(table: Any) -> dict[str, list[Any]]:
    """Column -> cells of a mapping or a frame.

    Raises:
        PluresError: if it is not a table, a column occurs twice, or columns differ in length.
    """
    if not isinstance(table, Mapping) and not hasattr(table, "columns"):
        raise PluresError(f"a {type(table).__name__} is not a table; give a frame, or a mapping from columns to values")
    names = [str(name) for name in (table if isinstance(table, Mapping) else table.columns)]
    found: dict[str, list[Any]] = {}
    for name in names:
        if name in found:
            raise PluresError(f"column {name!r} occurs twice in the table; rename or remove one")
        values = table[name]
        values = values.to_numpy() if hasattr(values, "to_numpy") else values
        if isinstance(values, str) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) != 1:
            raise PluresError(f"column {name!r}: give a list with one value per row")
        found[name] = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(found[name]) != len(found[names[0]]):
            raise PluresError(
                f"column {name!r} has {len(found[name])} rows, but column {names[0]!r} has {len(found[names[0]])}"
            )
    return found
