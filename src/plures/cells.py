"""Single cells of a table: missing, a number, a date, or text that is nearly one of these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOBODY = ("", "nan", "NaN", "<NA>", "NaT")
"""What a missing value becomes where an array is made of texts."""

MARKS = ("?", "NA", "N/A", "n/a", "na", "NULL", "null", "None", "none", "-", "--", ".", "missing", "unknown")
"""Texts that stand for a missing value among numbers."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
NEARLY = re.compile(r"[<>≤≥=~±≈*]{0,2}\s*[-+]?[$€£]?\s*\d[\d.,'\u2019\u00a0 ]*(e[-+]?\d+)?\s*[%*+]?", re.IGNORECASE)
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([T ].*)?|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)


def absent(cells: Sequence[Any]) -> NDArray[np.bool_]:
    """Which cells are None, NaN, empty, or what pandas and NumPy write for a missing value."""
    return np.array([_gone(cell) for cell in cells], dtype=bool)


def number(text: str) -> float | None:
    """A text as a number with a decimal point; None for anything else, and for infinity."""
    return float(text) if NUMBER.fullmatch(text.strip()) else None


def nearly_number(text: str) -> bool:
    """Whether a text is a number, or one with a comparison, a comma, a currency, blanks or a sign of percent."""
    return NEARLY.fullmatch(text.strip()) is not None


def date(text: str) -> bool:
    """Whether a text looks like a date or a time of the day."""
    return DATE.fullmatch(text.strip()) is not None


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different names that only case, blanks around them, or the notation of a number tell apart."""
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
