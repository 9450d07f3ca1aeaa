"""Examples in arrays, which every builder makes from its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.federation.encode import Column
from plures.federation.inputs import Inputs, named
from plures.federation.mapped import Mapped, file_rows
from plures.tasks import Task

Array = NDArray[Any]
Several = ArrayLike | Tensor | Inputs | Mapping[str, ArrayLike | Tensor] | tuple[ArrayLike | Tensor, ...]
"""Inputs as a user gives them: one array or tensor, or several by name, or in order."""


@brief
@by_content
@dataclass(frozen=True)
class Examples:
    """What every builder produces.

    Attributes:
        inputs: ``(n, *features)``, of which mapped ones are read as they are needed; several by name.
        targets: ``(n,)`` or ``(n, outputs)``.
        client: ``(n,)``.
        groups: ``(n,)`` or None.
        time: ``(n,)`` or None.
        weights: ``(n,)`` or None.
        key: ``(n,)`` row identifiers, or None.
        columns: names of the entries of the first feature dimension, or none.
        given: ``(n,)`` the split of each row, as its position in ``SPLITS``, or None to draw it.
        keys: ``(n,)`` sortable digests that identify rows instead of their inputs, or None.
        ordered: without a key, rows are identified by their order.
        scalable: ``(columns,)`` which may be standardised; all if None.
        missing: ``(n,)`` number of missing values that the inputs do not show.
        table: the columns of the table that the inputs were made from.
        ignored: its other columns.
        answers: names of the columns of several targets.
        unit: what raw inputs are divided by if they are not standardised, or None.
        learned: the task, if the targets are already as a model learns them; otherwise they are still to be read.
        subgroups: column, with the edges of bands if they are stated -> ``(n,)`` its values.
    """

    inputs: Array | Mapped | dict[str, Array | Mapped]
    targets: Array
    client: Array
    groups: Array | None = None
    time: Array | None = None
    weights: Array | None = None
    key: Array | None = None
    columns: tuple[str, ...] = ()
    keys: Array | None = None
    ordered: bool = False
    scalable: Array | None = None
    missing: Array | None = None
    table: tuple[Column, ...] = ()
    ignored: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    unit: float | None = None
    learned: Task | None = None
    given: Array | None = None
    subgroups: Mapping[str, Array] = field(default_factory=dict)


def of_arrays(
    inputs: Several,
    targets: ArrayLike | Tensor,
    client: ArrayLike | Tensor,
    groups: ArrayLike | Tensor | None,
    time: ArrayLike | Tensor | None,
    key: ArrayLike | Tensor | None,
    weights: ArrayLike | Tensor | None,
    columns: Sequence[str],
) -> Examples:
    """Convert the given data to arrays."""
    return Examples(
        inputs=arrays(inputs),
        targets=as_array(targets, "targets"),
        client=as_array(client, "client"),
        groups=None if groups is None else as_array(groups, "groups"),
        time=None if time is None else as_array(time, "time"),
        key=None if key is None else as_array(key, "key"),
        weights=None if weights is None else as_array(weights, "weights"),
        columns=tuple(map(str, columns)),
    )


def arrays(given: Several) -> Array | Mapped | dict[str, Array | Mapped]:
    """Inputs as arrays: one, or several by name; what is mapped from a file stays there."""
    several = named(given)
    if several is None:
        return _array_or_file(given, "inputs")
    check_names(several)
    return {name: _array_or_file(part, f"input {name!r}") for name, part in several.items()}


def check_names(several: Iterable[str]) -> None:
    """Refuse names of inputs that are no names of a network's arguments."""
    names = tuple(several)
    if not names:
        raise PluresError("inputs: an empty mapping; give at least one tensor by its name")
    for name in names:
        if not (name.isidentifier() or name.isdecimal()):
            raise PluresError(f"input {name!r}: give a name that a function's parameter may have")


def _array_or_file(given: Any, what: str) -> Array | Mapped:
    rows = file_rows(given) if isinstance(given, np.memmap) else None
    if rows is not None and len(rows.shape) > 1 and rows.dtype.kind in "fiu" and rows.dtype.isnative:
        return Mapped(rows)
    return given if isinstance(given, Mapped) else as_array(given, what)


def as_array(values: ArrayLike | Tensor, what: str, scalar: bool = False) -> Array:
    """Convert a value to an array.

    Args:
        values: a tensor, or anything that NumPy can convert.
        what: its name in messages.
        scalar: whether to accept a single value.
    """
    if isinstance(values, Tensor):
        dense = values.detach().to_dense().cpu() if values.layout is not torch.strided else values.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    try:
        array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    except (ValueError, TypeError) as error:
        raise PluresError(f"{what}: rows differ in shape or type ({error}); give all of them one shape") from error
    if array.ndim == 0 and not (scalar and array.dtype.kind in "fiubUS"):
        raise PluresError(
            f"{what}: a {type(values).__name__} is not an array; give numbers in an array or a tensor, or use "
            "from_table for columns with names"
        )
    return array
