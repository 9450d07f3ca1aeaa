"""A first declaration of a schema from a sample of the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, suggestion
from plures.tables.finding import Finding, FoundError
from plures.tables.kinds import Kind, Said, date_format, kind_of
from plures.tables.marks import read_days
from plures.tables.table import Cells, distinct, each, gaps_of, numbers, presence, text

CLASSES = 20
"""Most distinct integers that are read as classes."""


class Draft(TypedDict, total=False):
    """Options that the sample does not determine.

    Attributes:
        task: ``classification``, ``multilabel``, ``regression`` or another kind; inferred if not given: text or few
            integers are classes, several columns of 0 and 1 are labels.
        classes: names in order; the sorted values if not given.
        features: input columns; all without another role if not given. A column that is named here is not left out.
        drop: columns that are no inputs.
        date: column of dates.
        time: column of dates, or of numbers such as cycles or years, that orders the rows.
        group: column whose equal values stay in one split.
        weight: column that says how much each row counts.
        key: column that is different in all rows of a client.
        categories: columns of numbers that are codes.
        numbers: columns of numbers in which any other text is missing.
        ordered: column -> its values in order.
        dates: column -> how its dates are written, such as ``%d.%m.%Y``, where that is not clear.
        zero_is_missing: columns of numbers in which zero means a missing value.
        units: column -> unit.
        other: whether a category takes other values than those of the sample, as an input of their own (default
            false: a site's other value is an error).
        margin: extension of a range on both sides, as a share of it (default 0.1); non-negative columns stay
            non-negative; ``None`` for no range.
        digits: significant digits of a scale (default 2); center and range are rounded to the same decimal place.
        splits: how each client divides its rows, see :class:`~plures.tables.schema.Splits`.
    """

    task: str
    classes: Sequence[str]
    features: Sequence[str]
    drop: Collection[str]
    date: str
    time: str
    group: str
    weight: str
    key: str
    categories: Collection[str]
    numbers: Collection[str]
    ordered: Mapping[str, Sequence[str]]
    dates: Mapping[str, str]
    zero_is_missing: Collection[str]
    units: Mapping[str, str]
    other: bool
    margin: float | None
    digits: int
    splits: Mapping[str, object]


def draft(table: Mapping[str, Cells], target: Sequence[str], client: str | None, options: Draft) -> dict[str, object]:
    """The declaration of a schema, see :meth:`plures.tables.schema.Schema.of`."""
    marks = {key: str(name) for key, name in options.items() if key in ("date", "time", "group", "weight", "key")}
    splits = options.get("splits", {})
    roles = [*target, *marks.values(), *([str(splits["column"])] if splits.get("column") else [])]
    roles += [client] if client is not None else []
    given, drop = options.get("features"), options.get("drop", ())
    if given is not None and drop:
        raise PluresError("drop: with features it has no effect; leave the columns out of features instead")
    lists: Mapping[str, Collection[str]] = {
        "categories": options.get("categories", ()),
        "numbers": options.get("numbers", ()),
        "ordered": options.get("ordered", {}),
        "dates": options.get("dates", {}),
        "zero_is_missing": options.get("zero_is_missing", ()),
        "units": options.get("units", {}),
    }
    named = [str(name) for names in lists.values() for name in names]
    for name in [*roles, *(given or ()), *drop, *named]:
        if name not in table:
            raise PluresError(f"no column {name!r} in the table; {suggestion(name, table, 'its columns are')}")
    written = options.get("dates", {})
    if "time" in marks and (marks["time"] in written or not _ordered_by_number(table[marks["time"]])):
        marks["date"] = marks.pop("time")
    apart = {*roles, *drop}
    features = [name for name in table if name not in apart] if given is None else [str(name) for name in given]
    for key, names in lists.items():
        for name in names:
            if name not in features and (key, name) != ("dates", marks.get("date")):
                raise PluresError(f"{key}: column {name!r} is not an input; leave it out of {key}")
    form = None
    if "date" in marks:
        cells = table[marks["date"]]
        form = date_format(marks["date"], cells, distinct(cells), written)
    owner = [""] * len(table[target[0]]) if client is None else each(table[client], text)
    said = Said(
        options.get("categories", ()),
        options.get("numbers", ()),
        options.get("ordered", {}),
        options.get("dates", {}),
        features if given is not None else (),
    )
    code = np.unique(np.array(owner), return_inverse=True)[1]
    kinds = {name: kind_of(name, table[name], owner, said) for name in features}
    reasons = {name: kind.why for name, kind in kinds.items() if not kind.kind}
    columns = [_column(name, kind, table[name], code, options) for name, kind in kinds.items() if kind.kind]
    if given is not None and reasons:
        name = next(iter(reasons))
        raise PluresError(f"column {name!r}: {reasons[name]}; complete it or leave it out of features")
    if not columns:
        whys = "".join(f"; {name!r} is left out: {why}" for name, why in reasons.items())
        raise PluresError(f"no column of the table can be an input{whys or ': every column has another role'}")
    rest = "features do not name it" if given is not None else "it is named in drop"
    reasons |= {name: rest for name in table if name not in (*roles, *features)}
    return {
        **_task({name: table[name] for name in target}, options),
        **marks,
        **({"date_format": form} if form else {}),
        **({"client": client} if client is not None else {}),
        **({"splits": dict(splits)} if splits else {}),
        "ignored": {name: reasons[name] for name in table if name in reasons},
        "columns": columns,
    }


def _ordered_by_number(cells: Cells) -> bool:
    """Whether a column that orders rows holds numbers, which are not dates such as 20240531."""
    return not numbers(cells)[1].any() and bool(read_days(cells, None)[2].any())


def _task(targets: Mapping[str, Cells], options: Draft) -> dict[str, object]:
    read = [numbers(cells) for cells in targets.values()]
    wrong = any(bool(odd.any()) for _, odd in read)
    known = np.unique(np.concatenate([values[~np.isnan(values)] for values, _ in read]))
    few = len(known) <= CLASSES and bool((known == np.floor(known)).all())
    guess = "classification" if wrong or few else "regression"
    if len(targets) > 1:
        words = {str(presence(word)) for cells in targets.values() for word in distinct(cells)}
        guess = "multilabel" if words <= {"0", "1"} else "regression"
    kind, names = options.get("task", guess), tuple(targets)
    found: dict[str, object] = {"task": kind, "target": names}
    if "classes" in options:
        return {**found, "classes": tuple(options["classes"])}
    if kind != "classification" or len(names) > 1:
        return found
    classes = _levels(targets[names[0]], numeric=not wrong)
    if len(classes) < 2:
        what = f"is {classes[0]!r} in every row" if classes else "has no value at all"
        raise FoundError(Finding("error", names[0], what, "a classification needs two or more classes"))
    return {**found, "classes": classes}


def _column(name: str, kind: Kind, cells: Cells, code: NDArray[np.int64], options: Draft) -> dict[str, object]:
    found: dict[str, object] = {"name": name, "kind": kind.kind, **kind.fields}
    if kind.kind in ("category", "ordered", "boolean"):
        gaps = gaps_of(cells)
        other = {"other": True} if options.get("other", False) and kind.kind != "boolean" else {}
        return {**found, **other, "missing": _share(gaps, code)}
    if kind.kind == "date":
        values, gaps, _ = read_days(cells, kind.fields.get("format"))
        return {**found, **_moments(values[~gaps], None, options), "missing": _share(gaps, code)}
    values, _ = numbers(cells)
    zero = name in options.get("zero_is_missing", ())
    if zero:
        values[values == 0] = np.nan
    known = values[~np.isnan(values)]
    far = np.abs(values) > np.finfo(np.float32).max
    if not len(known) or far.any():
        endless = "an infinite value, or one too large for a 32-bit number"
        what, remedy = (endless, "correct it") if len(known) else ("no value at all", "complete it")
        rows = (int(far.argmax()) + 1,) if len(known) else ()
        raise FoundError(Finding("error", name, what, f"{remedy}, or leave the column out", rows))
    unit = options.get("units", {}).get(name)
    return {
        **found,
        **({"unit": unit} if unit is not None else {}),
        **({"zero_is_missing": True} if zero else {}),
        **_moments(known, options.get("margin", 0.1), options),
        "missing": _share(np.isnan(values), code),
    }


def _moments(values: NDArray[np.float64], margin: float | None, options: Draft) -> dict[str, float]:
    """Range, center and scale, rounded to one decimal place; ranges outwards."""
    digits = options.get("digits", 2)
    scale = float(values.std()) or 1.0
    place = digits - 1 - math.floor(math.log10(scale))
    middle = {"center": round(float(values.mean()), place), "scale": round(scale, place)}
    if margin is None:
        return middle
    low, high = float(values.min()), float(values.max())
    wider = margin * (high - low)
    least = -math.inf if low < 0 else 0.0
    return {
        "low": max(round(math.floor((low - wider) * 10.0**place) * 10.0**-place, place), least),
        "high": round(math.ceil((high + wider) * 10.0**place) * 10.0**-place, place),
        **middle,
    }


def _levels(cells: Cells, *, numeric: bool) -> tuple[str, ...]:
    found = distinct(cells)
    numeric = numeric and not found & {"False", "True"}  # booleans count as numbers, but are written as words
    return tuple(sorted(found, key=float) if numeric else sorted(found))


def _share(gaps: NDArray[np.bool_], code: NDArray[np.int64]) -> float:
    """Largest share of missing values of a client, rounded up to hundredths."""
    most = float((np.bincount(code, weights=gaps) / np.bincount(code)).max())
    return math.ceil(round(100 * most, 6)) / 100
