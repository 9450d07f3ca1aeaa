"""What was fitted to a federation's data when it was built, so that raw rows can be prepared without those data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.cells import Lines, place
from plures.content import by_content
from plures.errors import PluresError, suggestion
from plures.federation.encode import Column, cells_of
from plures.federation.inputs import Inputs
from plures.federation.scaling import Moments, Scaling, of_stored, stored


class Rows(Protocol):
    """A declaration of a table's rows, which makes inputs of them: :class:`plures.tables.Schema`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that the inputs are made from."""

    @property
    def gaps(self) -> tuple[int, ...]:
        """Positions of the inputs that say that a value is missing."""

    def encode(self, table: Any, *, scaled: bool = True) -> Tensor | Inputs:
        """Inputs ``(n, inputs)`` of raw rows; numbers are in their units unless they are scaled."""


@brief
@by_content
@dataclass(frozen=True)
class Preparation:
    """How raw rows become unscaled inputs, and how predicted numbers are converted back to the data's units.

    Attributes:
        table: the columns of a table, in the order of the inputs made from them; empty if rows came as numbers.
        ignored: other columns that the table had.
        fill: ``(columns,)`` replacement for a missing value of a raw row; ``None`` if missing values are refused.
        gaps: positions of the columns that have a 0/1 input "is missing" after all others.
        target: mean and scale of the targets, ``(outputs,)`` each; ``None`` if they are in their own units.
        schema: the declaration of the table's rows, if the data were made by one; then it reads tables.
    """

    table: tuple[Column, ...] = ()
    ignored: tuple[str, ...] = ()
    fill: Tensor | None = None
    gaps: tuple[int, ...] = ()
    target: Moments | None = None
    schema: Rows | None = None

    def names(self, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the columns of raw rows.

        Args:
            inputs: names of the inputs.
        """
        if self.schema is not None:
            return self.schema.names
        return tuple(column.name for column in self.table) or inputs[: len(inputs) - len(self.gaps)]

    def encoded(self, table: Any, inputs: tuple[str, ...]) -> Tensor | Inputs:
        """Raw rows ``(n, columns)`` float64 of a table; NaN where a number is missing. Several inputs by name.

        Args:
            table: column -> values, or a frame; its columns may be in any order.
            inputs: names of the inputs.

        Raises:
            PluresError: for a column that is missing or unknown, and for a cell that cannot be encoded as the run's
                data were: names column, row (from 1) and value.
        """
        if self.schema is not None:
            return self.schema.encode(table, scaled=False)
        found = cells_of(table)
        wanted = self.table or tuple(Column(name) for name in self.names(inputs))
        if not wanted:
            raise PluresError("the inputs have no named columns: give the rows as numbers, not as a table")
        names = [column.name for column in wanted]
        for name in names:
            if name not in found:
                raise PluresError(f"column {name!r} is missing: the model reads {', '.join(names)}")
        for name in found:
            if name not in names and name not in self.ignored:
                raise PluresError(
                    f"column {name!r} was not in the run's data: leave it out; {suggestion(name, names, 'columns are')}"
                )
        lines = table.lines if isinstance(table, Lines) else ()
        values = torch.from_numpy(np.column_stack([column.encoded(found[column.name], lines) for column in wanted]))
        if not len(values):
            raise PluresError("the table has no rows: give at least one")
        if self.fill is None and bool(values.isnan().any()):
            row, at = values.isnan().nonzero()[0].tolist()
            column = [column.name for column in wanted for _ in range(column.width)][at]
            raise PluresError(f"column {column!r}, {place(row, lines)}: a missing value, but the run's data had none")
        return values

    def completed(self, raw: Tensor, inputs: tuple[str, ...] = ()) -> Tensor:
        """Raw rows ``(n, columns)`` with missing values filled in, and the indicators of missing values.

        Rows that already have these inputs are unchanged.

        Args:
            raw: the rows; NaN is a missing value.
            inputs: names of the inputs, for messages.

        Raises:
            PluresError: if a value is missing in a column that had no missing values when the data were built.
        """
        if self.fill is None or raw.dim() != 2 or raw.shape[1] != len(self.fill):
            return raw
        absent = raw.isnan()
        new = [place for place in absent.any(0).nonzero().flatten().tolist() if place not in self.gaps]
        if new:
            column = repr(inputs[new[0]]) if inputs else new[0]
            raise PluresError(f"column {column} lacks a value, but lacked none in the run's data: complete it")
        return self.filled(raw)

    def filled(self, raw: Tensor) -> Tensor:
        """The same without a check, using only operations that other runtimes support."""
        if self.fill is None or raw.dim() != 2 or raw.shape[1] != len(self.fill):
            return raw
        absent = raw.isnan()
        whole = torch.where(absent, self.fill.to(raw), raw)
        return torch.cat([whole, absent[:, list(self.gaps)].to(raw)], 1) if self.gaps else whole

    def emptied(self, completed: Tensor) -> Tensor:
        """Inverse of :meth:`completed` up to rounding: NaN where a value was missing."""
        if self.fill is None or not self.gaps:
            return completed
        raw, missing = completed[:, : len(self.fill)].clone(), completed[:, len(self.fill) :] > 0.5
        places = list(self.gaps)
        raw[:, places] = torch.where(missing, torch.nan, raw[:, places])
        return raw

    def decoded(self, raw: Tensor) -> dict[str, list[Any]]:
        """The table that raw rows ``(n, columns)`` were made from: column -> cells."""
        found: dict[str, list[Any]] = {}
        first = 0
        for column in self.table:
            values = raw[:, first : first + column.width]
            cells = [*(column.levels or ()), None]
            found[column.name] = (
                values[:, 0].tolist() if column.levels is None else [cells[i] for i in values.argmax(1).tolist()]
            )
            first += column.width
        return found

    def scaled_targets(self, targets: Tensor) -> Tensor:
        """Targets ``(n, outputs)`` on the scale used in training; class numbers unchanged."""
        if self.target is None:
            return targets
        mean, scale = (t.to(targets) for t in self.target)
        return (targets - mean) / scale

    def in_units(self, outputs: Tensor) -> Tensor:
        """Predicted numbers ``(n, outputs)`` in the target's own units."""
        if self.target is None:
            return outputs
        mean, scale = (t.to(outputs) for t in self.target)
        return outputs * scale + mean

    def to_dict(self) -> dict[str, Any]:
        """Everything but tensors and the schema, as JSON values."""
        values = {"table": [asdict(column) for column in self.table], "ignored": self.ignored, "gaps": self.gaps}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def numbers(scaling: Scaling | None, preparation: Preparation | None) -> dict[str, Tensor]:
    """Fitted tensors, by name."""
    target = None if preparation is None else preparation.target
    found: dict[str, Tensor | None] = {
        **stored(scaling),
        "fill": None if preparation is None else preparation.fill,
        "target mean": target and target[0],
        "target scale": target and target[1],
    }
    return {name: value.detach().cpu() for name, value in found.items() if value is not None}


def restored(
    made: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], schema: Rows | None = None
) -> tuple[Scaling | None, Preparation | None]:
    """Scaling and preparation from the results of :func:`numbers` and :meth:`Preparation.to_dict`, and the schema."""
    scaling = of_stored(tensors)
    if made is None:
        return scaling, None
    table = tuple(Column(**{**column, "levels": _tuple(column["levels"])}) for column in made["table"])
    target = (tensors["target mean"], tensors["target scale"]) if "target mean" in tensors else None
    return scaling, Preparation(table, tuple(made["ignored"]), tensors.get("fill"), tuple(made["gaps"]), target, schema)


def _tuple(levels: list[str] | None) -> tuple[str, ...] | None:
    return None if levels is None else tuple(levels)
