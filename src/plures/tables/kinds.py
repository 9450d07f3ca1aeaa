"""What kind of column the cells of a table are, or why the column is no input."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.cells import MARKS, date, nearly_number
from plures.names import LONGEST
from plures.tables.column import COMMA
from plures.tables.finding import Finding, FoundError
from plures.tables.marks import read_days
from plures.tables.table import Cells, absent, distinct, gaps_of, numbers, text
from plures.tables.table import texts as texts_of

LEVELS = 30
"""Most values of a category; a column of text with more looks like names, case numbers or sentences."""
SURE = 20
"""Number of rows from which consecutive numbers, one per row, look like case numbers."""
TRUTH = (("no", "yes"), ("false", "true"), ("n", "y"), ("f", "t"), ("0", "1"))
"""Pairs of words of which the second means that something is so."""
SCALES = (
    ("very low", "low", "medium", "high", "very high"),
    ("low", "moderate", "high"),
    ("small", "medium", "large"),
    ("none", "mild", "moderate", "severe"),
    ("none", "some", "much"),
    ("never", "rarely", "sometimes", "often", "always"),
    ("very poor", "poor", "fair", "good", "very good", "excellent"),
    ("i", "ii", "iii", "iv", "v"),
)
"""Words that have an order: a column of some of them, three or more, is ordered."""
BAND = re.compile(r"[\[(]?\s*(-?\d+\.?\d*)\s*(?:-|\u2013|to|,)\s*(-?\d+\.?\d*)\s*[\])]?")
OPEN = re.compile(r"(?:(<=?|under|below)\s*(-?\d+\.?\d*))|(?:(>=?|over|above)\s*(-?\d+\.?\d*))|(-?\d+\.?\d*)\s*(\+)")
DAYS = (
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%y-%m-%d"),
    *("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%y"),
)
DATES = tuple(day + clock for clock in ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S", " %I:%M %p") for day in DAYS)
"""Formats of dates besides ISO; one is used if it alone fits all dates of a column."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
IDS = ("id", "uuid", "guid")
"""Words in a column's name that say that its values identify something."""


@brief
@dataclass(frozen=True)
class Kind:
    """The kind of a column.

    Attributes:
        kind: as in the schema; empty if the column is no input.
        fields: what the kind needs besides: levels in order, marks of missing values, the format of dates.
        why: why it is no input.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Said:
    """What the user said about columns.

    Attributes:
        categories: columns of codes.
        numbers: columns of numbers; any other text in them is missing.
        ordered: column -> its levels in order.
        dates: column -> how its dates are written.
        wanted: columns named as inputs, so they are not left out.
    """

    categories: Collection[str] = ()
    numbers: Collection[str] = ()
    ordered: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dates: Mapping[str, str] = field(default_factory=dict)
    wanted: Collection[str] = ()


def kind_of(name: str, cells: Cells, owner: Sequence[str], said: Said) -> Kind:
    """The kind of a column.

    Args:
        name: its name.
        cells: its cells.
        owner: the client of each row.
        said: what the user said.

    Raises:
        PluresError: names the column and a row, if its cells are almost, but not all, of one kind.
    """
    plain: list[Any] = cells.tolist() if isinstance(cells, np.ndarray) else cells
    gaps = gaps_of(plain)
    if gaps.all():
        return Kind("", why="it has no value at all")
    if name in said.ordered:
        return Kind("ordered", {"levels": tuple(map(text, said.ordered[name]))})
    values, wrong = numbers(cells)
    numeric = not wrong.any() and name not in said.dates
    if numeric and name not in said.categories and len(np.unique(values[~np.isnan(values)])) > 2:
        return _number(name, values, said)
    truth = {type(cell) for cell, gap in zip(plain, gaps.tolist(), strict=True) if not gap} <= {bool, np.bool_}
    texts = distinct(plain)
    if len(plain) > 1 and not gaps.any() and len(texts) == 1 and name not in said.wanted:
        return Kind("", why=f"it is {next(iter(texts))[:LONGEST]} in every row")
    if truth:
        return Kind("boolean", {"levels": ("False", "True")})
    if name in said.categories:
        return Kind("category", {"levels": _sorted(texts, numeric=not wrong.any())})
    if numeric and texts != {"0", "1"}:
        return _number(name, values, said)
    pair = _truth(texts)
    if pair is not None:
        return Kind("boolean", {"levels": pair})
    return _of_text(name, plain, wrong, texts, owner, said)


def _number(name: str, values: NDArray[np.float64], said: Said) -> Kind:
    """The kind of a column of numbers."""
    why = "" if name in said.wanted else _identifies(name, values)
    return Kind("", why=why) if why else Kind("number")


def _of_text(
    name: str, cells: list[Any], wrong: NDArray[np.bool_], texts: set[str], owner: Sequence[str], said: Said
) -> Kind:
    """The kind of a column in which not everything is a number."""
    form = date_format(name, cells, texts, said.dates)
    if form is not None:
        return Kind("date", {"format": form} if form else {})
    words, gaps = texts_of(cells), gaps_of(cells)
    odd = {word for word, is_odd in zip(words, wrong.tolist(), strict=True) if is_odd}
    marks = tuple(sorted(word for word in odd if word in MARKS or name in said.numbers))
    if marks and odd <= {*marks} and (texts - odd or name in said.numbers):
        return Kind("number", {"marks": marks})
    ordered = _scale(texts)
    if ordered is not None:
        return Kind("ordered", {"levels": ordered})
    if sum(map(nearly_number, texts)) >= len(texts) / 2:
        row = next(place for place, cell in enumerate(cells) if wrong[place] and text(cell) not in MARKS)
        is_ = "is" if len(odd) < len(texts) / 2 else "almost is"
        raise _wrong(
            name,
            row,
            f"{text(cells[row])!r} is not a number, as most of the column {is_}{_comma(text(cells[row]))}",
            "correct it, or name the column in numbers, which makes such cells missing, in categories, or in drop",
        )
    if name not in said.wanted:
        own = len(texts) == int((~gaps).sum())
        many = len(texts) > LEVELS or (len(texts) > LEVELS / 3 and len(texts) > len(cells) / 2)
        if own and len(texts) > LEVELS / 3:
            return Kind("", why="its text is different in every row, like a name or a case number")
        if many or any(len(word) > LONGEST for word in texts):
            return Kind("", why=f"it is free text, with {len(texts)} different values")
        pairs = {(word, who) for word, who, gap in zip(words, owner, gaps.tolist(), strict=True) if not gap}
        if len(texts) > 1 and len(pairs) == len(texts) and len({who for _, who in pairs}) > 1:
            return Kind("", why="it names the client: each value occurs at one client only")
    return Kind("category", {"levels": _sorted(texts, numeric=False)})


def _identifies(name: str, values: NDArray[np.float64]) -> str:
    """Why a column of numbers only identifies rows; empty if it does not."""
    known = values[~np.isnan(values)]
    if not bool((known == np.floor(known)).all()):
        return ""
    if any(word in IDS for word in (found.lower() for found in WORD.findall(name))):
        return "its name says that it is an identifier"
    alone = len(np.unique(known)) == len(values) >= SURE
    if alone and known.max() - known.min() < 2 * len(known):
        return "it is a running number, different in every row"
    return ""


def _truth(texts: set[str]) -> tuple[str, str] | None:
    """The two values of a boolean column, the true one last."""
    lower = {word.casefold(): word for word in texts}
    if len(texts) != 2 or len(lower) != 2:
        return None
    return next(((lower[no], lower[yes]) for no, yes in TRUTH if {no, yes} == lower.keys()), None)


def date_format(name: str, cells: Cells, texts: set[str], said: Mapping[str, str]) -> str | None:
    """How the dates of a column are written; empty for ISO dates, ``None`` for a column of something else.

    Args:
        name: its name.
        cells: its cells.
        texts: their different texts.
        said: column -> what the user said of it.

    Raises:
        PluresError: names the column and a row, if most cells are dates, but not all of one format, or if several
            formats fit all of them.
    """
    if name in said:
        return said[name]
    plain: list[Any] = cells.tolist() if isinstance(cells, np.ndarray) else cells
    if all(isinstance(cell, datetime) or hasattr(cell, "isoformat") for cell in plain if not absent(cell)):
        return ""
    if 2 * sum(map(date, texts)) < len(texts) or all(":" in word[:3] for word in texts):
        return None
    if not read_days(plain, None)[2].any():
        return ""
    some = [cell for cell in plain if not absent(cell)][:100]
    likely = [form for form in DATES if not read_days(some, form)[2].any()]
    fits = [form for form in likely if not read_days(plain, form)[2].any()]
    if len(fits) == 1:
        return fits[0]
    if fits:
        row = next(place for place, cell in enumerate(plain) if not absent(cell))
        told = json.dumps({name: fits[0]}, ensure_ascii=False)
        raise _wrong(
            name, row, f"{text(plain[row])!r} may be {' or '.join(fits)}", f"say which, with dates={told} or the like"
        )
    most = ("", *DATES)
    form = min(most, key=lambda form: int(read_days(some, form or None)[2].sum()))
    row = int(read_days(plain, form or None)[2].argmax())
    raise _wrong(
        name,
        row,
        f"{text(plain[row])!r} is not a date like the others",
        "correct it, or name the column in categories or in drop",
    )


def _wrong(name: str, row: int, what: str, remedy: str) -> FoundError:
    """An error at a row of a column, counted from 0."""
    return FoundError(Finding("error", name, what, remedy, (row + 1,)))


def _scale(texts: set[str]) -> tuple[str, ...] | None:
    """The values of a column in order, if they have one that everybody knows."""
    lower = {word.casefold(): word for word in texts}
    if len(texts) < 3 or len(lower) < len(texts):
        return None
    for scale in SCALES:
        if {*lower} <= {*scale}:
            return tuple(lower[word] for word in scale if word in lower)
    ends = {word: _ends(word) for word in texts}
    if any(end is None for end in ends.values()):
        return None
    found = sorted(texts, key=lambda word: ends[word] or (0.0, 0.0))
    bounds = [ends[word] or (0.0, 0.0) for word in found]
    apart = all(one[1] <= other[0] for one, other in pairwise(bounds))
    return tuple(found) if apart else None


def _ends(word: str) -> tuple[float, float] | None:
    """The ends of a band such as ``40-49``, ``<18`` or ``70+``."""
    if band := BAND.fullmatch(word):
        return float(band[1]), float(band[2])
    if not (found := OPEN.fullmatch(word.casefold())):
        return None
    if found[2] is not None:
        return -math.inf, float(found[2])
    return float(found[4] or found[5]), math.inf


def _comma(word: str) -> str:
    return " (write a decimal point instead of the comma)" if COMMA.fullmatch(word) else ""


def _sorted(texts: set[str], *, numeric: bool) -> tuple[str, ...]:
    return tuple(sorted(texts, key=float) if numeric else sorted(texts))
