"""Columns that are not inputs: dates, and groups of rows that stay together."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.tables.finding import Finding
from plures.tables.table import Cells, absent, each, gaps_of, text

Dates = NDArray[np.datetime64]


def read_dates(name: str, cells: Cells, form: str | None, *, needed: bool) -> tuple[Dates, list[Finding]]:
    """Dates of a column ``(n,)`` in microseconds of UTC, NaT if missing, and what is wrong with them.

    Args:
        name: name of the column.
        cells: texts, or dates.
        form: how texts are written, see :func:`read_days`.
        needed: whether every row needs one.
    """
    found, gaps, wrong = _moments(cells, form)
    findings = []
    if wrong.any():
        first = str(cells[int(wrong.argmax())])
        what = (
            f"{int(wrong.sum())} without {'an ISO date' if form is None else 'such a date'}, the first holds {first!r}"
        )
        findings.append(Finding("error", name, what, f"write dates like {like(form)}", _rows(wrong)))
    if gaps.any() and needed:
        what = f"{int(gaps.sum())} without a date, but the splits are by time"
        findings.append(Finding("error", name, what, "complete them or leave the rows out", _rows(gaps)))
    return found, findings


def read_days(cells: Cells, form: str | None) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Days since 1970 ``(n,)``, NaN if there is no date, with masks of missing cells and of cells that are no date.

    Args:
        cells: texts, or dates.
        form: how texts are written, for :meth:`datetime.datetime.strptime`; the ISO format if not given.
    """
    found, gaps, wrong = _moments(cells, form)
    days = (found - np.datetime64(0, "us")) / np.timedelta64(1, "D")
    return days, gaps, wrong


def like(form: str | None) -> str:
    """A date as it is to be written."""
    return datetime(2024, 5, 31).strftime(form or "%Y-%m-%d")


def read_groups(
    name: str, cells: Cells, why: str = "says which rows stay together"
) -> tuple[NDArray[np.str_], list[Finding]]:
    """Groups of a column ``(n,)`` as texts, and what is wrong with them."""
    gaps = gaps_of(cells)
    what = f"missing in {int(gaps.sum())} of {len(gaps)} rows, but it {why}"
    findings = [Finding("error", name, what, "complete it or leave the rows out", _rows(gaps))] if gaps.any() else []
    return np.array(each(cells, text), dtype=np.str_), findings


def _moments(cells: Cells, form: str | None) -> tuple[Dates, NDArray[np.bool_], NDArray[np.bool_]]:
    gaps = gaps_of(cells)
    found = each(cells, lambda cell: None if absent(cell) else _date(cell, form))
    wrong = np.array([day is None for day in found], dtype=bool) & ~gaps
    return np.array(found, dtype="datetime64[us]"), gaps, wrong


def _date(cell: Any, form: str | None) -> datetime | None:
    if isinstance(cell, date) and not isinstance(cell, datetime):
        return datetime(cell.year, cell.month, cell.day)
    try:
        read = datetime.fromisoformat if form is None else lambda word: datetime.strptime(word, form)
        moment = cell if isinstance(cell, datetime) else read(str(cell).strip())
    except ValueError:
        return None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).replace(tzinfo=None)


def _rows(which: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple((np.flatnonzero(which) + 1).tolist())
