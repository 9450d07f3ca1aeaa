"""Columns of a table as numbers; doubtful inputs are refused or reported until the user decides."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.cells import MARKS, absent, alike, date, listed, nearly_number, number
from plures.errors import PluresError, suggestion

Array = NDArray[Any]
LEVELS = 30
"""Largest number of text values that become inputs of their own by default."""

SURE = 20
"""Number of rows from which a column of distinct integers looks like case numbers."""


@dataclass(frozen=True)
class Column:
    """How cells of a table column become numbers, as determined when the data were built.

    Attributes:
        name: of the column.
        levels: the values that have an input each, as texts; ``None`` for a column of numbers.
        gap: whether an input for missing values follows those of the levels.
        lenient: whether a text that is not a number counts as missing.
    """

    name: str
    levels: tuple[str, ...] | None = None
    gap: bool = False
    lenient: bool = False

    @property
    def width(self) -> int:
        """Number of inputs made from it."""
        return 1 if self.levels is None else len(self.levels) + self.gap

    def encoded(self, cells: Sequence[Any]) -> Array:
        """``(n, width)`` float64; NaN where a number is missing.

        Raises:
            PluresError: for a value that did not occur when the data were built.
        """
        gaps = absent(cells).tolist()
        rows = enumerate(zip(cells, gaps, strict=True), start=1)
        if self.levels is None:
            return np.array([np.nan if gap else self._number(cell, row) for row, (cell, gap) in rows]).reshape(-1, 1)
        places = [len(self.levels) if gap else self._place(_text(cell), row) for row, (cell, gap) in rows]
        if not self.gap and any(gaps):
            raise PluresError(
                f"column {self.name!r}, row {gaps.index(True) + 1}: a missing value; the run's data had none in it: "
                "complete it"
            )
        return np.eye(self.width)[places].reshape(-1, self.width)

    def _number(self, cell: Any, row: int) -> float:
        found = number(str(cell)) if isinstance(cell, str) else None
        if isinstance(cell, int | float) and abs(cell) <= sys.float_info.max:
            found = float(cell)
        if found is None and isinstance(cell, str) and (self.lenient or cell.strip() in MARKS):
            if self.lenient and "," in cell and nearly_number(cell):
                raise PluresError(f"column {self.name!r}, row {row}: {cell!r} has a comma; write a decimal point")
            return float("nan")
        if found is None:
            raise PluresError(f"column {self.name!r}, row {row}: {cell!r} is not a finite number; correct it")
        return found

    def _place(self, text: str, row: int) -> int:
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
            f"column {self.name!r}, row {row}: {text!r} did not occur in the run's data; "
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
        doubt: a warning about what is probably unintended; may be empty.
        column: how cells become these numbers.
    """

    names: tuple[str, ...]
    values: Array
    numeric: bool
    missing: Array
    doubt: str
    column: Column


@dataclass(frozen=True)
class Decided:
    """What the user decided about the columns.

    Attributes:
        categories: columns with one input per value.
        numbers: text columns to read as numbers; anything else is missing.
        named: all columns requested by name.
        impute: whether missing values are allowed.
    """

    categories: Collection[str] = ()
    numbers: Collection[str] = ()
    named: Collection[str] = ()
    impute: bool = False


def encode(column: str, values: Array, categorical: bool, decided: Decided) -> Encoded:
    """Inputs of a column: a number as it is, a text as one 0/1 input for each of its values.

    Args:
        column: its name.
        values: ``(n,)`` of any type.
        categorical: whether the frame itself declares it a category.
        decided: what the user decided.

    Raises:
        PluresError: for dates, texts that are (almost) numbers or have many values, until the user decides.
    """
    if values.dtype.kind in "Mm":
        raise PluresError(f"column {column!r} holds dates: turn them into numbers, use it as time=, or {_drop(column)}")
    if values.dtype.kind not in "iufbOUS":
        raise PluresError(f"column {column!r} of type {values.dtype} is neither text nor numbers; {_drop(column)}")
    category = categorical or column in decided.categories
    if values.dtype.kind in "iuf" and not category:
        return _number(column, values, decided)
    cells = (values.astype(str) if values.dtype.kind == "S" else values).tolist()
    gaps = absent(cells)
    known = [cell for cell, gap in zip(cells, gaps.tolist(), strict=True) if not gap]
    _refuse_odd(column, known)
    if not category and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known):
        floats = np.array([np.nan if gap else float(cell) for cell, gap in zip(cells, gaps, strict=True)])
        return _number(column, floats, decided)
    if column in decided.numbers:
        return _parsed(column, cells, gaps, decided)
    if not category:
        _refuse_almost(column, known, len(cells))
    if len(set(map(str, known))) > LEVELS and column not in decided.categories:
        raise PluresError(_many(column, known))
    return _hot(column, cells, gaps, decided)


def _number(column: str, values: Array, decided: Decided) -> Encoded:
    known = values[values == values]
    doubt = ""
    if not len(known):
        doubt = f"column {column!r} has no value at all"
    elif column not in decided.named and len(known) > 1 and bool((known == known[0]).all()):
        doubt = f"column {column!r} is {known[0]:g} in every row"
    elif column not in decided.named and len(known) >= SURE and _identifies(known):
        doubt = f"column {column!r} is a different whole number in every row: is it a case number?"
    return Encoded((column,), values[:, None], True, np.zeros(len(values), dtype=np.int64), doubt, Column(column))


def _identifies(known: Array) -> bool:
    whole = known.dtype.kind in "iu" or bool((known == np.floor(known)).all())
    return whole and len(np.unique(known)) == len(known)


def _parsed(column: str, cells: Sequence[Any], gaps: Array, decided: Decided) -> Encoded:
    """Numbers from a text column that the user declared numeric."""
    found = [None if gap else number(str(cell)) for cell, gap in zip(cells, gaps.tolist(), strict=True)]
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    texts = [str(cell) for cell, value, gap in zip(cells, found, gaps, strict=True) if value is None and not gap]
    comma = [text for text in texts if "," in text and nearly_number(text)]
    if comma:
        raise PluresError(
            f"column {column!r} has {len(comma)} numbers with a comma, the first is {comma[0]!r}: write them with a "
            "decimal point and without thousands separators"
        )
    lost = [text for text in texts if text.strip() not in MARKS]
    if lost and not decided.impute:
        row = cells.index(lost[0])
        raise PluresError(
            f'column {column!r}, row {row}: {lost[0]!r} is not a number; correct it, or use missing="impute" to treat '
            "it as a missing value"
        )
    doubt = (
        f"column {column!r}: {len(lost)} cells are not numbers, such as {lost[0]!r}, and count as missing"
        if lost
        else ""
    )
    missing = np.zeros(len(values), dtype=np.int64)
    return Encoded((column,), values[:, None], True, missing, doubt, Column(column, lenient=True))


def _hot(column: str, cells: Sequence[Any], gaps: Array, decided: Decided) -> Encoded:
    """One 0/1 input for each value, and one for missing."""
    if gaps.any() and not decided.impute:
        raise PluresError(
            f"column {column!r}, row {int(gaps.argmax())}: a missing value; complete it or build the federation with "
            'missing="impute"'
        )
    text = np.array(["missing" if gap else _text(cell) for cell, gap in zip(cells, gaps.tolist(), strict=True)])
    levels = sorted(set(text[~gaps].tolist()))
    if all(number(level) is not None for level in levels):
        levels.sort(key=lambda level: (float(level), level))
    hot = [(text == level) & ~gaps for level in levels] + ([gaps] if gaps.any() else [])
    names = [f"{column}={level}" for level in levels] + ([f"{column} is missing"] if gaps.any() else [])
    if not names:
        raise PluresError(f"column {column!r} has no rows")
    doubt = ""
    if pairs := alike(levels):
        doubt = f"column {column!r}: {pairs[0][0]!r} and {pairs[0][1]!r} differ only by case, blanks or notation"
    elif not levels:
        doubt = f"column {column!r} has no value at all"
    elif len(levels) == 1 and column not in decided.named and not gaps.any() and len(cells) > 1:
        doubt = f"column {column!r} is {levels[0]!r} in every row"
    values = np.stack(hot, axis=1).astype(np.float32)
    made = Column(column, tuple(levels), bool(gaps.any()))
    return Encoded(tuple(names), values, False, gaps.astype(np.int64), doubt, made)


def _text(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _refuse_odd(column: str, known: Sequence[Any]) -> None:
    """Refuse cells that are neither text nor numbers."""
    for kind in {type(cell) for cell in known}:
        if issubclass(kind, datetime.date | datetime.time | datetime.timedelta):
            raise PluresError(
                f"column {column!r} holds dates: turn them into numbers, use it as time=, or {_drop(column)}"
            )
        if issubclass(kind, list | tuple | set | dict | bytes | np.ndarray):
            raise PluresError(
                f"column {column!r} holds a {kind.__name__} in a cell; make a column for each number, or "
                f"{_drop(column)}"
            )


def _refuse_almost(column: str, known: Sequence[Any], rows: int) -> None:
    """Refuse texts that look like dates, numbers or case identifiers."""
    levels = list(dict.fromkeys(str(cell) for cell in known if str(cell).strip() not in MARKS))
    dates = [level for level in levels if date(level)]
    if levels and len(dates) >= len(levels) / 2:
        raise PluresError(
            f"column {column!r} holds dates as text, such as {dates[0]!r}: turn them into numbers, use it as time=, "
            f"or {_drop(column)}"
        )
    numbers = [level for level in levels if nearly_number(level)]
    if levels and len(numbers) >= len(levels) / 2:
        others = [level for level in dict.fromkeys(map(str, known)) if number(level) is None]
        text = f"almost only numbers as text, but also {listed([repr(other) for other in others])}"
        raise PluresError(
            f"column {column!r} holds {text if others else f'numbers as text, such as {numbers[0]!r}'}: use "
            f"numbers=[{column!r}] to read them as numbers{' and the others as missing' if others else ''}, "
            f"categories=[{column!r}] to give each of the {len(set(map(str, known)))} values an input of its own, or "
            f"{_drop(column)}"
        )
    if len(levels) > LEVELS or (len(levels) > LEVELS / 3 and len(levels) > rows / 2):
        raise PluresError(_many(column, known))


def _many(column: str, known: Sequence[Any]) -> str:
    levels = list(dict.fromkeys(map(str, known)))
    return (
        f"column {column!r} has {len(levels)} different texts ({listed([repr(level) for level in levels])}): use "
        f"categories=[{column!r}] to give each an input of its own, or {_drop(column)}"
    )


def _drop(column: str) -> str:
    return f"leave it out with drop=[{column!r}]"


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
