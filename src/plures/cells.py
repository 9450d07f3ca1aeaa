"""Single cells of a table: missing, a number, a date, or text that is almost one of these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOBODY = ("", "nan", "NaN", "<NA>", "NaT")
"""Text of a missing value in an array of strings."""

MARKS = ("?", "NA", "N/A", "n/a", "na", "NULL", "null", "None", "none", "-", "--", ".", "missing", "unknown")
"""Strings that mean a missing value in a numeric column."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
NEARLY = re.compile(r"[<>≤≥=~±≈*]{0,2}\s*[-+]?[$€£]?\s*\d[\d.,'\u2019\u00a0 ]*(e[-+]?\d+)?\s*[%*+]?", re.IGNORECASE)
MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})"
    rf"|\d{{1,2}}[- ]{MONTH}[- ](\d{{4}}|\d{{2}})|{MONTH} \d{{1,2}}, \d{{4}})([T ].*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?",
    re.IGNORECASE,
)


class Lines(dict[str, list[Any]]):
    """A table from a text file: column -> cells.

    Attributes:
        lines: where each row begins in the file, as an editor counts its lines; the header is line 1.
    """

    lines: Sequence[int] = ()


def place(row: int, lines: Sequence[int] | None = None) -> str:
    """Where a row of a table is, as text: its line in the file that it comes from, or its number, from 1.

    Args:
        row: its position, from 0.
        lines: the line of each row, if the table comes from a text file.
    """
    return f"line {lines[row]}" if lines else f"row {row + 1}"


def absent(cells: Sequence[Any]) -> NDArray[np.bool_]:
    """Which cells are missing, ``(n,)``: None, NaN, empty, or what pandas or NumPy writes for a missing value."""
    return np.array([_gone(cell) for cell in cells], dtype=bool)


def number(text: str) -> float | None:
    """Parse a number with a decimal point; None for anything else, including infinity."""
    return float(text) if NUMBER.fullmatch(text.strip()) else None


def nearly_number(text: str) -> bool:
    """Whether a string is a number, possibly with a comparison, commas, a currency, spaces or a percent sign."""
    return NEARLY.fullmatch(text.strip()) is not None


def date(text: str) -> bool:
    """Whether a string looks like a date or a time of day."""
    return DATE.fullmatch(text.strip()) is not None


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, surrounding spaces, or the notation of a number."""
    first: dict[object, str] = {}
    pairs = []
    for name in names:
        value = number(name)
        key: object = name.strip().casefold() if value is None else value
        if first.setdefault(key, name) != name:
            pairs.append((first[key], name))
    return pairs


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _gone(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell in NOBODY
    if isinstance(cell, list | tuple | dict | np.ndarray):
        return False
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or bool(cell != cell)
