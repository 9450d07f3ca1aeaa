"""A federation from the columns of a named data set, which are known to be right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Examples
from plures.federation.build.keys import digest
from plures.federation.build.options import Options
from plures.federation.encode import encode
from plures.federation.federation import Federation

Array = NDArray[Any]


def by_content(
    columns: Mapping[str, Array],
    *,
    target: str,
    client: str,
    features: Sequence[str],
    categories: Collection[str] = (),
    given: Array | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation from the columns of a named data set; a row is identified by its features.

    A column of text, and one that is named a category, becomes one 0/1 input for each value, which is never
    standardised; with ``missing="impute"`` a missing value is a level of its own.

    Args:
        columns: column -> ``(n,)`` cells.
        target: column to predict.
        client: column with the client of each row.
        features: the columns that are inputs.
        categories: those of numbers that are codes.
        given: ``(n,)`` the official split of each row, as its position in ``SPLITS``.
        options: see `from_arrays`.
    """
    encoded = [encode(column, columns[column], column in categories) for column in features]
    if options.get("missing", "error") != "impute":
        for column, part in zip(features, encoded, strict=True):
            if part.missing.any():
                raise PluresError(f'column {column!r}: a missing value; give missing="impute"')
    content = zip(*(columns[column].tolist() for column in features), strict=True)
    rows = Examples(
        inputs=np.column_stack([part.values for part in encoded]),
        targets=columns[target],
        client=columns[client],
        columns=tuple(name for part in encoded for name in part.names),
        scalable=np.concatenate([np.full(len(part.names), part.numeric) for part in encoded]),
        missing=np.sum([part.missing for part in encoded], axis=0),
        table=tuple(part.column for part in encoded),
        ignored=tuple(column for column in columns if column not in features),
        keys=np.array([digest(repr(row).encode()) for row in content]),
        given=given,
    )
    return assemble(rows, options, "a named data set", ())
