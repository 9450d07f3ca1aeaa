"""Check, split, impute and scale: the last step of every builder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.cells import absent, number
from plures.errors import PluresError, PluresWarning
from plures.federation.build.examples import Examples
from plures.federation.build.inputs import Where, checked_inputs, checked_rows, impute, several_inputs
from plures.federation.build.keys import keys_of
from plures.federation.build.options import ARRAYS, HINTS, Options
from plures.federation.doubts import doubts
from plures.federation.federation import Federation
from plures.federation.inputs import Inputs, lead, one_tensor
from plures.federation.mapped import Mapped
from plures.federation.metadata import MISSING_VALUES, metadata_of
from plures.federation.options import checked
from plures.federation.preparation import Preparation
from plures.federation.scaling import Scaling, moments_of, standardized
from plures.federation.splits import Split, SplitName, SplitRule, as_given, divided
from plures.names import Names, coded
from plures.tasks import Task, task_of
from plures.tasks.reading import refuse

Array = NDArray[Any]


@brief
@dataclass(frozen=True)
class Placed:
    """Rows that are checked and divided.

    Attributes:
        names: the clients.
        client: ``(n,)`` the position of each row's client.
        rows: ``(n,)`` which of the given rows they are: those with a client and a weight.
        weights: ``(n,)``, or None if all rows count alike.
        task: what is predicted.
        targets: as a model learns them.
        inputs: in their final type.
        splits: the rows of each split.
    """

    names: Names
    client: Array
    rows: Array
    weights: Tensor | None
    task: Task
    targets: Tensor
    inputs: Tensor | Inputs
    splits: dict[SplitName, Split]


def train_rows(data: Examples, given: Options, where_from: str) -> Array:
    """Which rows train, for builders that make the inputs only then; their rows are identified by ``keys`` or ``key``.

    Args:
        data: the rows, whose inputs are empty.
        given: options of `from_arrays`.
        where_from: name of the builder, for messages.
    """
    placed = _placed(data, cast(Options, checked({**given}, HINTS, where_from, ARRAYS)))
    train: Array = placed.rows[placed.splits["train"].rows.numpy()]
    return train


def assemble(data: Examples, given: Options, where_from: str, also: Sequence[str] = ARRAYS) -> Federation:
    """Check, split, impute and scale: the one place where a federation is made.

    Args:
        data: the rows.
        given: options of `from_arrays`.
        where_from: name of the builder, for messages.
        also: names of its other arguments.
    """
    options = cast(Options, checked({**given}, HINTS, where_from, also))
    return _finished(data, options, _placed(data, options))


def _placed(data: Examples, options: Options) -> Placed:
    """Check and split."""
    given_inputs = data.inputs if isinstance(data.inputs, dict) else {"inputs": data.inputs}
    n = len(next(iter(given_inputs.values())))
    for name, part in given_inputs.items():
        if part.ndim == 0 or len(part) != n:
            raise PluresError(f"input {name!r}: {part.shape} instead of {n} rows; all inputs must have as many rows")
    groups, time = data.groups, data.time
    marks = (("groups", groups), ("time", time), ("key", data.key), ("weights", data.weights))
    apart = ((f"subgroups {name!r}", values) for name, values in data.subgroups.items())
    for label, column in (("targets", data.targets), ("client", data.client), *marks, *apart):
        if column is not None and (column.ndim == 0 or len(column) != n):
            raise PluresError(
                f"{label}: {column.shape[0] if column.ndim else 'no'} values for {n} inputs; they must match"
            )
    if n == 0:
        raise PluresError("no examples: give at least one row")
    names, client, used = _client_names(data.client)
    rows = np.flatnonzero(used)
    weights = None
    if data.weights is not None:
        weights, counted = _weights(data.weights[rows], Where(names, client, rows, data.columns))
        rows, client = rows[counted], client[counted]

    def kept(values: Array | None) -> Array | None:
        return None if values is None else values[rows] if len(rows) < n else values

    if data.columns and isinstance(data.inputs, dict):
        raise PluresError(f"columns: names are for one input tensor, but there are {', '.join(data.inputs)}")
    if data.columns and len(data.columns) != math.prod(given_inputs["inputs"].shape[1:2]):
        raise PluresError(f"columns: {len(data.columns)} names for inputs of shape {given_inputs['inputs'].shape}")
    twice = [column for place, column in enumerate(data.columns) if column in data.columns[:place]]
    if twice:
        raise PluresError(f"columns: {twice[0]!r} is given twice; rename or remove one")
    where = Where(names, client, rows, data.columns)
    for label, column in (("group", groups), ("time", time), ("key", data.key)):
        if column is not None:
            gaps = torch.from_numpy(_gaps(column[rows]))
            refuse(gaps, f"no {label}; complete it or leave the row out", where)
    if time is not None:
        time = _in_order(time, rows, where)
    rule = options.get("split") or SplitRule()
    if time is not None and rule.by != "time":
        raise PluresError(
            'time: the split is random, so it has no effect; give split=SplitRule(by="time"), or leave it out'
        )
    if rule.by == "time" and options.get("seed", 0) != 0:
        raise PluresError(f"seed={options.get('seed')}: a split by time draws nothing; leave the seed out")
    if data.learned is None:
        asked = options.get("task"), options.get("classes")
        task, targets = task_of(data.targets[rows], *asked, where, data.answers)
    else:
        task, targets = data.learned, torch.from_numpy(data.targets[rows])
    if options.get("standardize_targets", False) and (task.probable or not task.scalable):
        raise PluresError(f"standardize_targets: {task.called} have no scale; leave it out, or give task='regression'")
    raw: Array | Mapped | dict[str, Array | Mapped]
    inputs: Tensor | Inputs
    if isinstance(data.inputs, dict):
        raw = {name: _some(part, rows) for name, part in data.inputs.items()}
        inputs = several_inputs(raw, options, where)
    elif isinstance(data.inputs, Mapped):
        raw = data.inputs.some(rows) if len(rows) < n else data.inputs
        inputs = checked_rows(raw, options, where)
    else:
        raw = data.inputs[rows] if len(rows) < n else data.inputs
        inputs = checked_inputs(raw, options, where)
    keys = keys_of(data, rows, where, raw, isinstance(inputs, Tensor) and inputs.is_floating_point())
    content, seed = (task.strata(targets), kept(groups), kept(time), keys), options.get("seed", 0)
    if (told := kept(data.given)) is None:
        splits = divided(names, client, *content, rule, seed)
    else:
        splits = as_given(names, client, told, *content, rule, seed)
    return Placed(names, client, rows, weights, task, targets, inputs, splits)


def _finished(data: Examples, options: Options, placed: Placed) -> Federation:
    """Impute and scale."""
    names, client, rows = placed.names, placed.client, placed.rows
    task, targets, inputs, splits = placed.task, placed.targets, placed.inputs, placed.splits
    train = splits["train"].rows
    listed = np.argsort(np.unique(client, return_index=True)[1])  # by first row
    metadata = metadata_of(options.get("metadata"), names, tuple(names[place] for place in listed.tolist()))
    columns, made = data.columns, Preparation(data.table, data.ignored)
    scalable = torch.ones(math.prod(lead(inputs).shape[1:2]), dtype=torch.bool)
    if data.scalable is not None:
        scalable = torch.from_numpy(data.scalable)
    if options.get("missing", "error") == "impute":
        incomplete = one_tensor(inputs, 'missing="impute"')
        gaps = torch.isnan(incomplete)
        per_row = gaps.flatten(1).sum(1).numpy()
        if data.missing is not None:
            per_row = per_row + data.missing[rows]
        count = np.bincount(client, weights=per_row)
        metadata[MISSING_VALUES] = tuple(int(c) for c in count)
        inputs, columns, scalable, fill, places = impute(incomplete, gaps, train, columns, scalable)
        made = replace(made, fill=fill, gaps=places)
    scaling: Scaling | None = None
    if options.get("standardize", False):
        inputs, scaling = _standardized(inputs, train, scalable)
    elif data.unit is not None and isinstance(inputs, Tensor) and inputs.is_floating_point():
        wide = torch.zeros(inputs.shape[1], dtype=torch.float64)
        scaling = wide, wide + data.unit
        inputs = inputs.scaled(*scaling) if isinstance(inputs, Mapped) else inputs.div_(data.unit)
    source = options.get("source", "")
    if options.get("standardize_targets", False):
        mean, scale = moments_of(targets, train)
        made = replace(made, target=(mean, scale))
        targets = made.scaled_targets(targets)
        note = ", ".join(f"mean {m:.6g}, scale {s:.6g}" for m, s in zip(mean.tolist(), scale.tolist(), strict=True))
        note = f"targets standardised ({note}): errors are on that scale, predictions for new rows in their own units"
        source = f"{source}; {note}" if source else note
    federation = Federation(
        name=options.get("name", "data"),
        task=task,
        inputs=inputs,
        targets=targets,
        clients=names,
        splits=splits,
        metadata=metadata,
        source=source,
        columns=columns,
        scaling=scaling,
        weights=placed.weights,
        preparation=made if made.table or made.fill is not None or made.target is not None else None,
    )
    if data.subgroups:
        federation = federation.with_subgroups({name: values[rows] for name, values in data.subgroups.items()})
    if found := doubts(federation, options.get("copies", "warn") == "warn"):
        warnings.warn(f"{federation.name}: {'; '.join(found)}", PluresWarning, stacklevel=3)
    return federation


def _standardized(inputs: Tensor | Inputs, train: Tensor, scalable: Tensor) -> tuple[Tensor | Inputs, Scaling]:
    """Inputs with mean 0 and standard deviation 1 over the train rows; of several, those of real numbers."""
    if isinstance(inputs, Tensor):
        mean, scale = moments_of(inputs, train)
        moments = torch.where(scalable, mean, 0), torch.where(scalable, scale, 1)
        return standardized(inputs, moments), moments
    several = {name: moments_of(t, train) for name, t in inputs.parts.items() if t.is_floating_point()}
    if not several:
        raise PluresError(f"standardize: the inputs {', '.join(inputs.parts)} are whole numbers; leave it out")
    scaled = {name: standardized(t, several[name]) if name in several else t for name, t in inputs.parts.items()}
    return Inputs(scaled), several


def _client_names(client: Array) -> tuple[Names, NDArray[np.int64], Array]:
    """The clients' names, the position of each used row's client among them, and which rows are used."""
    if client.ndim != 1:
        raise PluresError(f"client: expected one value per row, got shape {client.shape}")
    if client.dtype.kind == "f":
        broken = ~np.isfinite(client) | (client != np.floor(client))
        if broken.any():
            row = int(broken.argmax())
            raise PluresError(f"client column, row {row}: {client[row]} cannot name a client; give every row a client")
        client = client.astype(np.int64)
    if client.dtype.kind in "OU":
        gaps = absent(client.tolist())
        if gaps.any():
            raise PluresError(f"client column, row {int(gaps.argmax())}: no client; give every row a client")
    if client.dtype.kind == "O" and all(type(cell) is int for cell in client.tolist()):
        client = client.astype(np.int64)
    used = client >= 0 if client.dtype.kind == "i" else np.ones(len(client), dtype=bool)
    if not used.any():
        raise PluresError("client column: every row is left out (negative); give at least one row a client")
    names, places = coded(client[used])
    return Names.ordered(names), places, used


def _weights(given: Array, where: Where) -> tuple[Tensor, Array]:
    """Weights of the rows that count, and which rows those are."""
    if given.ndim != 1:
        raise PluresError(f"weights: expected one number per row, got shape {given.shape}")
    if given.dtype.kind == "O":
        given = np.array([cell if isinstance(cell, int | float) else np.nan for cell in given.tolist()], dtype=float)
    if given.dtype.kind not in "fiub":
        raise PluresError(f"weights of type {given.dtype} are no numbers; give a number of at least 0 for each row")
    weights = torch.from_numpy(given.astype(np.float32))
    refuse(
        ~((weights >= 0) & weights.isfinite()), "a weight that is negative or no number; correct it, or say 0", where
    )
    counted = weights > 0
    some = np.bincount(where.client, weights=counted.numpy(), minlength=len(where.names)) > 0
    if not some.all():
        raise PluresError(
            f"client {where.names[int(some.argmin())]!r}: all weights are 0, so it has no example; correct them, or "
            "leave the client out"
        )
    return weights[counted], counted.numpy()


def _some(values: Array | Mapped, rows: Array) -> Array | Mapped:
    """Some rows, which are in order."""
    if len(rows) == len(values):
        return values
    return values.some(rows) if isinstance(values, Mapped) else values[rows]


def _in_order(time: Array, rows: Array, where: Where) -> Array:
    """Texts that order rows, as numbers or dates: texts themselves have another order, ``10`` before ``2``."""
    if time.dtype.kind not in "OU" or not any(isinstance(cell, str) for cell in time[rows].tolist()):
        return time
    known = [None if gap else str(cell).strip() for cell, gap in zip(time.tolist(), _gaps(time).tolist(), strict=True)]
    found = [None if cell is None else number(cell) for cell in known]
    if all(found[row] is not None for row in rows.tolist()):
        return np.array([np.nan if value is None else value for value in found])
    dates = np.full(len(time), np.datetime64("NaT", "us"))
    for place, row in enumerate(rows.tolist()):
        try:
            moment = datetime.fromisoformat(known[row] or "")
        except ValueError:
            raise PluresError(
                f"{where(place)}: time {known[row]!r} is neither a number nor an ISO date, as others are; convert all "
                "times to numbers or dates"
            ) from None
        dates[row] = (moment.astimezone(UTC) if moment.tzinfo else moment).replace(tzinfo=None)
    return dates


def _gaps(values: Array) -> Array:
    """Which values are missing."""
    return absent(values.tolist()) if values.dtype.kind in "OU" else values != values
