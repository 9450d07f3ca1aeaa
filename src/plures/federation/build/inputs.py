"""Inputs as numbers: checked, imputed, with their moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.federation.build.options import Options
from plures.federation.inputs import Inputs
from plures.federation.mapped import Mapped
from plures.tasks.reading import refuse

Array = NDArray[Any]


@brief
@dataclass(frozen=True)
class Where:
    """Describes a position for messages: the client (by its index in ``names``), the row as given, the column."""

    names: tuple[str, ...]
    client: Array
    rows: Array
    columns: tuple[str, ...]

    def __call__(self, position: int, column: int | None = None) -> str:
        place = f"client {self.names[int(self.client[position])]!r}, row {int(self.rows[position])}"
        if column is None:
            return place
        return f"{place}, column {self.columns[column]!r}" if self.columns else f"{place}, column {column}"


def several_inputs(given: Mapping[str, Array | Mapped], options: Options, where: Where) -> Inputs:
    """Several checked inputs by name: real ones in the wanted type, integers and booleans as int64."""
    real = options.get("dtype", torch.float32)
    if not real.is_floating_point:
        raise PluresError(f"dtype={real}: of several inputs, each keeps its kind; give a floating-point type")
    if options.get("missing", "error") == "impute":
        raise PluresError(f'missing="impute": it completes one table, but there are {", ".join(given)}; complete them')
    found: dict[str, Tensor] = {}
    for name, values in given.items():
        whole = not values.dtype.is_floating_point if isinstance(values, Mapped) else values.dtype.kind != "f"
        kind: Options = {"dtype": torch.int64 if whole else real}
        try:
            if isinstance(values, Mapped):
                found[name] = checked_rows(values, kind, where)
            else:
                found[name] = checked_inputs(values, kind, where)
        except PluresError as error:
            raise PluresError(f"input {name!r}: {error}") from error
    return Inputs(found)


def checked_inputs(inputs: Array, options: Options, where: Where) -> Tensor:
    """Checked inputs in their final type; NaN only where it will be imputed."""
    dtype = options.get("dtype", torch.float32)
    missing = options.get("missing", "error")
    if inputs.ndim < 2:
        inputs = inputs.reshape(len(inputs), 1)
    if missing == "impute" and inputs.ndim != 2:
        raise PluresError(f'missing="impute" needs inputs (n, columns), got {inputs.shape}; complete the data yourself')
    if inputs.dtype.kind not in "fiub":
        raise PluresError(f"inputs of type {inputs.dtype} are not numbers; encode them, or use from_table")
    if options.get("standardize", False) and not dtype.is_floating_point:
        raise PluresError(f"standardize: inputs of type {dtype} cannot be scaled; use a floating-point dtype")
    if dtype.is_complex or dtype == torch.bool:
        raise PluresError(f"dtype={dtype}: inputs are floating point, or integers for tokens")
    if not dtype.is_floating_point and missing == "impute":
        raise PluresError(f'missing="impute": integers of type {dtype} have no missing value; leave it out')
    values = torch.from_numpy(np.array(inputs, order="C")).to(dtype)
    if not values.is_floating_point():
        lost = torch.from_numpy((values.numpy() != inputs).reshape(len(inputs), -1).any(1))
        refuse(lost, f"an input that {dtype} cannot hold; use a floating-point dtype, or correct it", where)
        return values
    bad = torch.isinf(values) if missing == "impute" else ~torch.isfinite(values)
    if bool(bad.any()):
        at = int(bad.flatten(1).any(1).int().argmax())
        column = int(bad[at].nonzero()[0, 0])
        if bool(torch.isinf(values[at][bad[at]]).any()):
            what = "an infinite value; correct it, or leave the row out"
        else:
            what = 'a missing value (NaN); complete it, leave the row out, or fill all of them with missing="impute"'
        raise PluresError(f"{where(at, column)}: {what}")
    return values


def checked_rows(inputs: Mapped, options: Options, where: Where) -> Mapped:
    """Inputs that stay where they are, in their final type, checked a block at a time."""
    dtype = options.get("dtype", torch.float32)
    if options.get("missing", "error") == "impute":
        raise PluresError('missing="impute": inputs that are read from disk are not imputed; complete them first')
    if not dtype.is_floating_point and inputs.source.dtype.kind == "f":
        raise PluresError(f"dtype={dtype}: the stored inputs are floating point; give a floating-point type")
    if not dtype.is_floating_point and options.get("standardize", False):
        raise PluresError(f"standardize: inputs of type {dtype} cannot be scaled; use a floating-point dtype")
    refuse(inputs.bad(), "a NaN or an infinite value; correct it, or leave the row out", where)
    return inputs.typed(dtype)


def impute(
    inputs: Tensor, absent: Tensor, train: Tensor, columns: tuple[str, ...], scalable: Tensor
) -> tuple[Tensor, tuple[str, ...], Tensor, Tensor, tuple[int, ...]]:
    """Train means for missing values, and an indicator for each column that has any."""
    known = ~absent[train]
    total = torch.where(known, inputs[train].double(), 0).sum(0)
    mean = total / known.sum(0).clamp(min=1)
    filled = torch.where(absent, mean.to(inputs.dtype), inputs)
    gaps = absent.any(0)
    indicators = absent[:, gaps].to(inputs.dtype)
    names = columns or tuple(f"column {number}" for number in range(inputs.shape[1]))
    missing = tuple(f"{name} is missing" for name, gap in zip(names, gaps.tolist(), strict=True) if gap)
    return (
        torch.cat([filled, indicators], 1),
        names + missing,
        torch.cat([scalable, torch.zeros(len(missing), dtype=torch.bool)]),
        mean,
        tuple(gaps.nonzero().flatten().tolist()),
    )
