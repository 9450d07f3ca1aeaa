"""Client metadata: one row per client, however it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plures.errors import PluresError
from plures.names import by_name, name_of

Metadata = Mapping[Any, Sequence[object]] | Mapping[Any, Mapping[Any, object]]
ORDER = "client"
"""Metadata column that gives the client of each value in the other columns."""
MISSING_VALUES = "missing values"
"""Metadata column with the number of a client's missing values."""


def metadata_of(
    metadata: Metadata | None, names: tuple[str, ...], listed: tuple[str, ...]
) -> dict[str, tuple[object, ...]]:
    """Column -> the value of each client.

    Args:
        metadata: see `from_arrays`.
        names: the clients' names, in their order.
        listed: the same names in the order of their first rows.
    """
    given: dict[Any, Any] = {} if metadata is None else dict(metadata.items())
    if ORDER not in given:
        given = {key: _labelled(values, names) for key, values in given.items()}
    mappings = {key: values for key, values in given.items() if isinstance(values, Mapping)}
    if mappings and len(mappings) < len(given):
        raise PluresError("metadata: give client -> row or column -> values, not both")
    if not mappings:
        lists = {str(key): values for key, values in given.items() if not isinstance(values, Mapping)}
        return _from_lists(lists, names, listed)
    inner = [key for values in mappings.values() for key in values]
    if inner and not _clients(mappings, names) and _clients(inner, names):
        columns = {str(key): by_name(values) for key, values in mappings.items()}
        for key, values in columns.items():
            for name in names:
                if name not in values:
                    raise PluresError(f"metadata column {key!r}: no value for client {name!r}")
        return {key: tuple(values[name] for name in names) for key, values in columns.items()}
    rows = by_name(mappings)
    for name in names:
        if name not in rows:
            raise PluresError(f"metadata: no row for client {name!r}")
    keys = list(dict.fromkeys(key for name in names for key in rows[name]))
    return {str(key): tuple(rows[name].get(key) for name in names) for key in keys}


def _labelled(values: Any, names: Sequence[str]) -> Any:
    """A pandas series labelled by clients as a mapping; anything else unchanged."""
    if not (hasattr(values, "to_dict") and hasattr(values, "index")):
        return values
    own: dict[Any, object] = values.to_dict()
    return own if {str(key) for key in own} >= set(names) else values


def _clients(keys: Iterable[object], names: Sequence[str]) -> bool:
    """Whether some of the keys name clients."""
    return any(isinstance(key, str | int | np.generic) and name_of(key) in names for key in keys if key != "")


def _from_lists(
    columns: Mapping[str, Sequence[object]], names: tuple[str, ...], listed: tuple[str, ...]
) -> dict[str, tuple[object, ...]]:
    """Lists of values, in the order given by their column ``client``, or in the only possible order."""
    order = [name_of(value) for value in columns.get(ORDER, names)]
    if ORDER in columns and (set(order) != set(names) or len(order) != len(names)):
        raise PluresError(
            f"metadata column {ORDER!r}: it states the order of the lists, so it must name each of the "
            f"{len(names)} clients once; they are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        )
    values = {key: column for key, column in columns.items() if key != ORDER}
    for key, column in values.items():
        if isinstance(column, str) or not hasattr(column, "__len__"):
            raise PluresError(f"metadata column {key!r}: give one value for each client, not {column!r}")
        if len(column) != len(names):
            raise PluresError(f"metadata column {key!r}: {len(column)} values for {len(names)} clients")
    if values and ORDER not in columns and not names == listed == tuple(sorted(names)):
        raise PluresError(
            f"metadata column {next(iter(values))!r}: whose value comes first? Give a mapping from clients to values, "
            f"or state the order of the lists in a column {ORDER!r}"
        )
    place = {name: number for number, name in enumerate(order)}
    return {key: tuple([*column][place[name]] for name in names) for key, column in values.items()}
