"""A first declaration of a schema from a sample of the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.tables.table import Cells, absent, numbers, text

LEVELS = 30
"""Most values of a category; a column with more looks like names or case numbers."""

CLASSES = 20
"""Most distinct integers that are read as classes."""


class Draft(TypedDict, total=False):
    """Options that the sample does not determine.

    Attributes:
        task: ``classification``, ``multilabel`` or ``regression``; inferred if not given: text or few integers are
            classes, several columns of 0 and 1 are labels.
        classes: names in order; the sorted values if not given.
        features: input columns; all without another role if not given.
        date: column of dates.
        group: column whose equal values stay in one split.
        weight: column that says how much each row counts.
        categories: columns of numbers that are codes.
        zero_is_missing: columns of numbers in which zero means a missing value.
        units: column -> unit.
        margin: extension of a range on both sides, as a share of it (default 0.1); non-negative columns stay
            non-negative.
        digits: significant digits of a scale (default 2); center and range are rounded to the same decimal place.
    """

    task: Literal["classification", "multilabel", "regression"]
    classes: Sequence[str]
    features: Sequence[str]
    date: str
    group: str
    weight: str
    categories: Collection[str]
    zero_is_missing: Collection[str]
    units: Mapping[str, str]
    margin: float
    digits: int


def draft(table: Mapping[str, Cells], target: Sequence[str], client: str | None, options: Draft) -> dict[str, object]:
    """The declaration of a schema, see :meth:`plures.tables.schema.Schema.of`."""
    marks = {key: str(name) for key, name in options.items() if key in ("date", "group", "weight")}
    roles = [*target, *([client] if client is not None else []), *marks.values()]
    features = list(options.get("features", [name for name in table if name not in roles]))
    named = (options.get("categories", ()), options.get("zero_is_missing", ()), options.get("units", ()))
    for name in [*roles, *features, *(name for names in named for name in names)]:
        if name not in table:
            raise PluresError(f"no column {name!r} in the table; its columns are {', '.join(table)}")
    owner = [""] * len(table[target[0]]) if client is None else [text(cell) for cell in table[client]]
    return {
        **_task({name: table[name] for name in target}, options),
        **marks,
        "columns": [_column(name, table[name], owner, options) for name in features],
    }


def _task(targets: Mapping[str, Cells], options: Draft) -> dict[str, object]:
    read = [numbers(cells) for cells in targets.values()]
    wrong = any(bool(odd.any()) for _, odd in read)
    known = np.unique(np.concatenate([values[~np.isnan(values)] for values, _ in read]))
    few = len(known) <= CLASSES and bool((known == np.floor(known)).all())
    guess = "classification" if wrong or few else "regression"
    if len(targets) > 1:
        guess = "multilabel" if not wrong and {0.0, 1.0} >= {*known.tolist()} else "regression"
    kind, names = options.get("task", guess), tuple(targets)
    found: dict[str, object] = {"task": kind, "target": names}
    if "classes" in options:
        return {**found, "classes": tuple(options["classes"])}
    if kind != "classification" or len(names) > 1:
        return found
    return {**found, "classes": tuple(_levels(targets[names[0]], numeric=not wrong))}


def _column(name: str, cells: Cells, owner: Sequence[str], options: Draft) -> dict[str, object]:
    values, wrong = numbers(cells)
    kinds = {type(cell) for cell in cells if not absent(cell)}
    truth = bool(kinds) and kinds <= {bool, np.bool_}
    if wrong.any() or truth or name in options.get("categories", ()):
        levels = _levels(cells, numeric=not wrong.any() and not truth)
        gaps = np.array([absent(cell) for cell in cells], dtype=bool)
        if not 0 < len(levels) <= LEVELS:
            raise PluresError(
                f"column {name!r} has {len(levels) or 'no'} different values, too {'many' if levels else 'few'} for a "
                "category; leave it out of features, or turn it into numbers"
            )
        return {"name": name, "kind": "category", "levels": levels, "missing": _share(gaps, owner)}
    zero = name in options.get("zero_is_missing", ())
    if zero:
        values[values == 0] = np.nan
    known = values[~np.isnan(values)]
    if not len(known) or np.isinf(known).any():
        what = "an infinite value; correct it" if len(known) else "no value at all; complete it"
        raise PluresError(f"column {name!r} has {what} or leave it out of features")
    unit = options.get("units", {}).get(name)
    return {
        "name": name,
        "kind": "number",
        **({"unit": unit} if unit is not None else {}),
        **({"zero_is_missing": True} if zero else {}),
        **_moments(known, options.get("margin", 0.1), options.get("digits", 2)),
        "missing": _share(np.isnan(values), owner),
    }


def _moments(values: NDArray[np.float64], margin: float, digits: int) -> dict[str, float]:
    """Range, center and scale, rounded to one decimal place; ranges outwards."""
    scale = float(values.std()) or 1.0
    place = digits - 1 - math.floor(math.log10(scale))
    low, high = float(values.min()), float(values.max())
    wider = margin * (high - low)
    least = -math.inf if low < 0 else 0.0
    return {
        "low": max(round(math.floor((low - wider) * 10.0**place) * 10.0**-place, place), least),
        "high": round(math.ceil((high + wider) * 10.0**place) * 10.0**-place, place),
        "center": round(float(values.mean()), place),
        "scale": round(scale, place),
    }


def _levels(cells: Cells, *, numeric: bool) -> tuple[str, ...]:
    found = {text(cell) for cell in cells if not absent(cell)}
    return tuple(sorted(found, key=float) if numeric else sorted(found))


def _share(gaps: NDArray[np.bool_], owner: Sequence[str]) -> float:
    """Largest share of missing values of a client, rounded up to hundredths."""
    _, code = np.unique(np.array(owner), return_inverse=True)
    most = float((np.bincount(code, weights=gaps) / np.bincount(code)).max())
    return math.ceil(round(100 * most, 6)) / 100
