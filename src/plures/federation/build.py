"""Build a federation from arrays, a table, a PyTorch dataset or a folder; check and complete the data on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError, PluresWarning
from plures.federation.federation import Federation, Task
from plures.federation.names import by_name, coded, name_of, named
from plures.federation.splits import SplitRule, split_rows

Array = NDArray[Any]
Metadata = Mapping[Any, Sequence[object]] | Mapping[Any, Mapping[Any, object]]
ORDER = "client"
"""Metadata column that says whose value stands where in the other columns."""
MISSING_VALUES = "missing values"
FEW = 3
NOBODY = ("", "nan", "<NA>", "NaT")
"""What a missing value becomes where an array is made of texts."""


class Options(TypedDict, total=False):
    """What every builder takes; see `from_arrays`."""

    name: str
    task: Literal["classification", "regression"] | None
    classes: Sequence[str] | None
    metadata: Metadata | None
    split: SplitRule | None
    seed: int
    missing: Literal["error", "impute"]
    standardize: bool
    standardize_targets: bool
    dtype: torch.dtype
    source: str


class MapDataset(Protocol):
    """A map-style PyTorch dataset of (input, target) pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Frame(Protocol):
    """A pandas or polars frame."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, column: str, /) -> Any: ...


def from_arrays(
    inputs: ArrayLike | Tensor,
    targets: ArrayLike | Tensor,
    client: ArrayLike | Tensor,
    *,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from arrays and the client of each row.

    Args:
        inputs: ``(n, *features)`` numbers; NaN is a missing value, infinity an error.
        targets: ``(n,)`` integers, truth values or strings (classification), or ``(n,)`` or ``(n, outputs)`` floating
            point (regression).
        client: ``(n,)`` names, or numbers that become names; a negative number leaves the row out (see the
            partitioners, whose result goes here).
        groups: ``(n,)`` rows of one client with the same value stay in one split.
        time: ``(n,)`` order of the rows, for ``SplitRule(by="time")``.
        columns: names of the entries of the inputs' first feature dimension, for messages and reports.

    Options:
        name: of the federation (default ``data``).
        task: ``classification`` or ``regression``; inferred from the targets' type if not given.
        classes: class names in order; the sorted strings, or the numbers up to the largest label, if not given.
        metadata: client -> its row (a mapping), column -> client -> value, or column -> values with a column
            ``client`` that says in which order. Numbers may stand for clients that are numbers. Without that column,
            lists are taken only where every order of the clients (as their rows come, as texts, as numbers) is the
            same.
        split: shares of the splits and how they are drawn (default ``SplitRule()``).
        seed: of the splits (default 0).
        missing: ``error`` (default), or ``impute`` for inputs ``(n, columns)``: a missing value becomes the column's
            mean over the train rows of all clients, and a 0/1 column "<column> is missing" is added for each column
            that has any; metadata column "missing values" counts them per client.
        standardize: inputs to mean 0 and standard deviation 1 over the train rows of all clients, per entry of the
            first feature dimension (column or channel); a constant one and indicator columns are left alone. Like
            the means of ``impute``, these are sums that clients can compute together without showing a row.
        standardize_targets: the same for regression targets; ``source`` then tells mean and scale.
        dtype: of the inputs (default ``torch.float32``; an integer type keeps tokens).
        source: origin and licence, for reports.

    Raises:
        PluresError: names the client, row and column at fault and the remedy.

    Examples:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
        >>> hospital = np.array(["Basel", "Graz", "Pisa"]).repeat(20)
        >>> federation = from_arrays(x, y, hospital, name="hospitals")
        >>> federation.clients
        ('Basel', 'Graz', 'Pisa')
    """
    return _assemble(_Examples(_array(inputs), _array(targets), _array(client), groups, time, tuple(columns)), options)


def from_frame(
    frame: Frame | Mapping[str, Array],
    *,
    target: str | Sequence[str],
    client: str,
    features: Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation from a pandas or polars frame, or a mapping from column names to arrays.

    A feature column of strings, truth values or categories becomes one 0/1 column for each value, named
    ``column=value`` and never standardised; with ``missing="impute"`` a missing value is a level of its own.

    Args:
        frame: one row per example.
        target: column to predict; several for regression with several outputs.
        client: column with the client of each row (any metadata column can serve: that is the partition by metadata).
        features: input columns; all that are not named otherwise if not given.
        group: column whose equal values stay in one split.
        time: column that orders the rows; dates are fine.
        options: see `from_arrays`.

    Raises:
        PluresError: among others for a column that is not there, naming it and those that are.
    """
    targets = [target] if isinstance(target, str) else list(target)
    there = [str(column) for column in (frame if isinstance(frame, Mapping) else frame.columns)]
    roles = [*targets, client, *(column for column in (group, time) if column is not None)]
    features = [column for column in there if column not in roles] if features is None else list(features)
    for column in [*roles, *features]:
        if column not in there:
            raise PluresError(f"no column {column!r} in the table; its columns are {', '.join(there)}")
    if not features:
        raise PluresError("the table has no feature column: every column has another role")

    def column_of(column: str) -> Array:
        values = frame[column]
        return values if isinstance(values, np.ndarray) else np.asarray(values.to_numpy())

    raw = [column_of(column) for column in features]
    keys = np.array([_digest(repr(row).encode()) for row in zip(*(c.tolist() for c in raw), strict=True)])
    encoded = [
        _encode(column, values, options.get("missing", "error")) for column, values in zip(features, raw, strict=True)
    ]
    wanted = [column_of(column) for column in targets]
    return _assemble(
        _Examples(
            inputs=np.column_stack([part.values for part in encoded]),
            targets=wanted[0] if isinstance(target, str) else np.column_stack(wanted),
            client=column_of(client),
            groups=None if group is None else column_of(group),
            time=None if time is None else column_of(time),
            columns=tuple(name for part in encoded for name in part.names),
            keys=keys,
            scalable=np.concatenate([np.full(len(part.names), part.numeric) for part in encoded]),
            missing=np.sum([part.missing for part in encoded], axis=0),
        ),
        options,
    )


def from_dataset(
    dataset: MapDataset,
    client: ArrayLike | Tensor,
    *,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation from a map-style PyTorch dataset of (input, target) pairs.

    Every item is read once and kept in memory, so transforms of the dataset are applied once.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; all inputs of one shape.
        client: ``(len(dataset),)`` client of each item.
        groups: see `from_arrays`.
        time: see `from_arrays`.
        options: see `from_arrays`.
    """
    inputs: list[Array] = []
    targets: list[Array] = []
    for position in range(len(dataset)):
        item = dataset[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PluresError(f"dataset item {position}: expected an (input, target) pair, got {type(item).__name__}")
        inputs.append(_array(item[0]))
        targets.append(_array(item[1]))
        if inputs[-1].shape != inputs[0].shape:
            raise PluresError(
                f"dataset item {position}: input of shape {inputs[-1].shape}, but item 0 has {inputs[0].shape}; "
                "crop or pad to one shape"
            )
    if not inputs:
        raise PluresError("the dataset is empty: give at least one item")
    labels = np.stack(targets)
    return from_arrays(np.stack(inputs), labels, client, groups=groups, time=time, **options)


def from_folder(path: str | Path, **options: Unpack[Options]) -> Federation:
    """A federation from a folder with one ``.npz`` file per client; the file's stem is the client's name.

    Each file holds ``x`` ``(n_i, *features)`` and ``y`` ``(n_i,)`` or ``(n_i, outputs)``, and may hold ``group`` and
    ``time`` (either all files or none). Pickled objects are refused.

    Args:
        path: the folder.
        options: see `from_arrays`; the name is that of the folder if not given.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise PluresError(f"no .npz file in {folder}: expected one per client, with arrays x and y")
    parts = [_read_client(file) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        if part.keys() != first.keys():
            raise PluresError(
                f"{file}: holds {', '.join(part)}, but {files[0].name} holds {', '.join(first)}; they must agree"
            )
        for key in ("x", "y"):
            if part[key].shape[1:] != first[key].shape[1:]:
                raise PluresError(
                    f"{file}: rows of {key} have shape {part[key].shape[1:]}, but {first[key].shape[1:]} in "
                    f"{files[0].name}"
                )
    joined = {key: np.concatenate([part[key] for part in parts]) for key in first}
    client = np.repeat([file.stem for file in files], [len(part["x"]) for part in parts])
    options.setdefault("name", folder.name)
    return from_arrays(joined["x"], joined["y"], client, groups=joined.get("group"), time=joined.get("time"), **options)


def _read_client(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            part = {key: archive[key] for key in ("x", "y", "group", "time") if key in archive.files}
    except (OSError, ValueError) as error:
        raise PluresError(
            f"{file}: cannot be read as .npz without pickled objects ({error}); write it again"
        ) from error
    for key in ("x", "y"):
        if key not in part:
            raise PluresError(f"{file}: array {key!r} is missing; each client's file holds x and y")
    lengths = {key: len(values) if values.ndim else 0 for key, values in part.items()}
    if len(set(lengths.values())) > 1:
        raise PluresError(f"{file}: lengths differ: {', '.join(f'{key} {n}' for key, n in lengths.items())}")
    if lengths["x"] == 0:
        raise PluresError(f"{file}: client {file.stem!r} has no row; give it data or remove the file")
    return part


@brief
@dataclass(frozen=True)
class _Encoded:
    """A table column as numbers: its values ``(n, len(names))``, and which of its cells are missing."""

    names: tuple[str, ...]
    values: Array
    numeric: bool
    missing: Array


def _encode(column: str, values: Array, missing: str) -> _Encoded:
    if values.dtype.kind in "iuf":
        return _Encoded((column,), values[:, None], True, np.zeros(len(values), dtype=np.int64))
    if values.dtype.kind in "Mm":
        raise PluresError(f"column {column!r} holds dates: make numbers of them, or use it as time=")
    cells = values.tolist()
    absent = _absent(cells)
    if all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in np.array(cells, object)[~absent]):
        numbers = np.array([np.nan if gone else float(cell) for cell, gone in zip(cells, absent, strict=True)])
        return _Encoded((column,), numbers[:, None], True, np.zeros(len(values), dtype=np.int64))
    if absent.any() and missing == "error":
        raise PluresError(
            f"column {column!r}, row {int(absent.argmax())}: a missing value; complete it or build the federation with "
            'missing="impute"'
        )
    text = np.array(["missing" if gone else str(cell) for cell, gone in zip(cells, absent, strict=True)])
    levels = sorted(set(text[~absent].tolist()))
    hot = [(text == level) & ~absent for level in levels] + ([absent] if absent.any() else [])
    names = [f"{column}={level}" for level in levels] + ([f"{column} is missing"] if absent.any() else [])
    return _Encoded(tuple(names), np.stack(hot, axis=1).astype(np.float32), False, absent.astype(np.int64))


@brief
@dataclass(frozen=True)
class _Examples:
    """What every builder ends with."""

    inputs: Array
    targets: Array
    client: Array
    groups: ArrayLike | Tensor | None = None
    time: ArrayLike | Tensor | None = None
    columns: tuple[str, ...] = ()
    keys: Array | None = None
    scalable: Array | None = None
    missing: Array | None = None


def _assemble(data: _Examples, options: Options) -> Federation:
    """Check, split, complete and scale: the one place where a federation is made."""
    n = len(data.inputs)
    groups, time = (None if c is None else _array(c) for c in (data.groups, data.time))
    for label, column in (("targets", data.targets), ("client", data.client), ("groups", groups), ("time", time)):
        if column is not None and (column.ndim == 0 or len(column) != n):
            raise PluresError(
                f"{label}: {column.shape[0] if column.ndim else 'no'} values for {n} inputs; they must match"
            )
    if n == 0:
        raise PluresError("no example: give at least one row")
    client, used = _client_names(data.client)
    rows = np.flatnonzero(used)

    def kept(values: Array | None) -> Array | None:
        return None if values is None else values[rows] if len(rows) < n else values

    if data.columns and len(data.columns) != math.prod(data.inputs.shape[1:2]):
        raise PluresError(f"columns: {len(data.columns)} names for inputs of shape {data.inputs.shape}")
    where = _Where(client, rows, data.columns)
    if time is not None:
        _refuse(torch.from_numpy(time[rows] != time[rows]), "no time; complete it or leave the row out", where)
    task, targets = _targets(data.targets[rows], options, where)
    inputs = _inputs(data.inputs[rows] if len(rows) < n else data.inputs, options, where)
    keys = kept(data.keys)
    if keys is None:
        keys = np.array([_digest(row.tobytes()) for row in inputs.numpy()])
    labels = targets.numpy() if task.kind == "classification" else None
    names, splits = split_rows(
        client,
        labels=labels,
        groups=kept(groups),
        time=kept(time),
        keys=keys,
        rule=options.get("split"),
        seed=options.get("seed", 0),
    )
    train = splits["train"].rows
    metadata = _metadata(options.get("metadata"), names, tuple(dict.fromkeys(client.tolist())))
    scalable = torch.ones(inputs.shape[1], dtype=torch.bool) if inputs.ndim > 1 else torch.ones(0, dtype=torch.bool)
    if data.scalable is not None:
        scalable = torch.from_numpy(data.scalable)
    columns = data.columns
    if options.get("missing", "error") == "impute":
        absent = torch.isnan(inputs)
        per_row = absent.flatten(1).sum(1).numpy()
        if data.missing is not None:
            per_row = per_row + data.missing[rows]
        count = np.bincount(coded(client)[1], weights=per_row)
        metadata[MISSING_VALUES] = tuple(int(c) for c in count)
        inputs, columns, scalable = _impute(inputs, absent, train, columns, scalable)
    scaling = None
    if options.get("standardize", False):
        if not inputs.is_floating_point():
            raise PluresError(
                f"standardize: inputs of type {inputs.dtype} cannot be scaled; use a floating-point dtype"
            )
        mean, scale = _moments(inputs, train)
        mean, scale = scaling = torch.where(scalable, mean, 0), torch.where(scalable, scale, 1)
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        inputs = inputs.sub_(mean.to(inputs.dtype).view(shape)).div_(scale.to(inputs.dtype).view(shape))
    source = options.get("source", "")
    if options.get("standardize_targets", False) and task.kind == "regression":
        mean, scale = _moments(targets, train)
        targets = (targets - mean.to(targets.dtype)) / scale.to(targets.dtype)
        told = ", ".join(f"mean {m:.6g}, scale {s:.6g}" for m, s in zip(mean.tolist(), scale.tolist(), strict=True))
        source = f"{source}; targets standardised ({told})" if source else f"targets standardised ({told})"
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
    )
    _warn_if_thin(federation)
    return federation


@brief
@dataclass(frozen=True)
class _Where:
    """Turns a position into words: the client, the row as it was given, the column."""

    client: Array
    rows: Array
    columns: tuple[str, ...]

    def __call__(self, position: int, column: int | None = None) -> str:
        place = f"client {str(self.client[position])!r}, row {int(self.rows[position])}"
        if column is None:
            return place
        return f"{place}, column {self.columns[column]!r}" if self.columns else f"{place}, column {column}"


def _client_names(client: Array) -> tuple[Array, Array]:
    """Names of the rows that are used, and which those are."""
    if client.ndim != 1:
        raise PluresError(f"client: expected one value per row, got shape {client.shape}")
    if client.dtype.kind == "f":
        broken = ~np.isfinite(client) | (client != np.floor(client))
        if broken.any():
            row = int(broken.argmax())
            raise PluresError(f"client column, row {row}: {client[row]} names no client; give every row a client")
        client = client.astype(np.int64)
    if client.dtype.kind in "OU":
        absent = _absent(client.tolist()) | np.isin(client.astype(str), NOBODY)
        if absent.any():
            raise PluresError(f"client column, row {int(absent.argmax())}: no client; give every row a client")
    if client.dtype.kind == "O" and all(type(cell) is int for cell in client.tolist()):
        client = client.astype(np.int64)
    used = client >= 0 if client.dtype.kind == "i" else np.ones(len(client), dtype=bool)
    if not used.any():
        raise PluresError("client column: every row is left out (negative); give at least one row a client")
    return named(client[used]), used


def _targets(targets: Array, options: Options, where: _Where) -> tuple[Task, Tensor]:
    kind, names = options.get("task"), options.get("classes")
    if targets.dtype.kind == "O":
        absent = _absent(targets.ravel().tolist())
        if absent.any():
            raise PluresError(f"{where(int(absent.argmax()))}: no target; leave the row out")
        targets = np.array(targets.tolist())
    if kind is None:
        kind = "regression" if targets.dtype.kind == "f" else "classification"
    if kind == "regression":
        if targets.dtype.kind not in "fiub":
            raise PluresError(f"targets of type {targets.dtype} cannot be regressed on; give numbers")
        values = torch.from_numpy(targets.reshape(len(targets), -1).astype(np.float32))
        _refuse(~torch.isfinite(values).all(1), "a NaN or infinite target; correct it or leave the row out", where)
        return Task("regression", outputs=values.shape[1]), values
    if kind != "classification":
        raise PluresError(f"task {kind!r} is unknown; use 'classification' or 'regression'")
    if targets.ndim != 1:
        raise PluresError(f"class labels must be one per row, got shape {targets.shape}")
    if targets.dtype.kind in "US":
        text = targets.astype(str)
        names = tuple(sorted(set(text.tolist()))) if names is None else tuple(names)
        codes = {name: code for code, name in enumerate(names)}
        labels = np.array([codes.get(label, -1) for label in text.tolist()])
        unknown = torch.from_numpy(labels < 0)
        if bool(unknown.any()):
            at = int(unknown.int().argmax())
            raise PluresError(f"{where(at)}: label {str(text[at])!r} is none of the classes {', '.join(names)}")
        return Task("classification", names, len(names)), torch.from_numpy(labels)
    if targets.dtype.kind == "f":
        _refuse(torch.from_numpy(targets != np.floor(targets)), "a label that is no whole number", where)
    labels = targets.astype(np.int64)
    top = len(names) if names is not None else int(labels.max()) + 1
    outside = (labels < 0) | (labels >= top)
    if outside.any():
        at = int(outside.argmax())
        raise PluresError(
            f"{where(at)}: label {labels[at]} is outside 0..{max(top - 1, 0)}; "
            "correct the labels or the list of classes"
        )
    return Task("classification", tuple(names or map(str, range(top))), top), torch.from_numpy(labels)


def _inputs(inputs: Array, options: Options, where: _Where) -> Tensor:
    """Checked inputs in their final type; NaN only where it will be imputed."""
    dtype = options.get("dtype", torch.float32)
    missing = options.get("missing", "error")
    if missing not in ("error", "impute"):
        raise PluresError(f"missing={missing!r} is unknown; use 'error' or 'impute'")
    if inputs.ndim < 2:
        inputs = inputs.reshape(len(inputs), 1)
    if missing == "impute" and inputs.ndim != 2:
        raise PluresError(f'missing="impute" needs inputs (n, columns), got {inputs.shape}; complete the data yourself')
    if inputs.dtype.kind not in "fiub":
        raise PluresError(f"inputs of type {inputs.dtype} are no numbers; encode them, or use from_frame")
    values = torch.from_numpy(np.ascontiguousarray(inputs)).to(dtype, copy=True)
    if not values.is_floating_point():
        return values
    bad = torch.isinf(values) if missing == "impute" else ~torch.isfinite(values)
    if bool(bad.any()):
        at = int(bad.flatten(1).any(1).int().argmax())
        column = int(bad[at].nonzero()[0, 0])
        what = (
            "an infinite value; correct it" if bool(torch.isinf(values[at][bad[at]]).any()) else "a missing value (NaN)"
        )
        remedy = "" if missing == "impute" else ' or leave the row out, or fill NaN with missing="impute"'
        raise PluresError(f"{where(at, column)}: {what}{remedy}")
    return values


def _refuse(bad: Tensor, what: str, where: _Where) -> None:
    if bool(bad.any()):
        raise PluresError(f"{where(int(bad.int().argmax()))}: {what}")


def _impute(
    inputs: Tensor, absent: Tensor, train: Tensor, columns: tuple[str, ...], scalable: Tensor
) -> tuple[Tensor, tuple[str, ...], Tensor]:
    """Train means for missing values, and an indicator for each column that has any."""
    known = ~absent[train]
    total = torch.where(known, inputs[train].double(), 0).sum(0)
    mean = total / known.sum(0).clamp(min=1)
    filled = torch.where(absent, mean.to(inputs.dtype), inputs)
    gaps = absent.any(0)
    indicators = absent[:, gaps].to(inputs.dtype)
    names = columns or tuple(f"column {number}" for number in range(inputs.shape[1]))
    told = tuple(f"{name} is missing" for name, gap in zip(names, gaps.tolist(), strict=True) if gap)
    return (
        torch.cat([filled, indicators], 1),
        names + told,
        torch.cat([scalable, torch.zeros(len(told), dtype=torch.bool)]),
    )


def _moments(values: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the train rows for each entry of dimension 1; 0 and 1 where constant."""
    means, scales = [], []
    for channel in range(values.shape[1]):  # one at a time: double precision of everything would be large
        own = values[train, channel].double().flatten()
        constant = bool((own == own[0]).all())
        means.append(0.0 if constant else float(own.mean()))
        scales.append(1.0 if constant else float(own.std(correction=0)))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)


def _metadata(
    metadata: Metadata | None, names: tuple[str, ...], listed: tuple[str, ...]
) -> dict[str, tuple[object, ...]]:
    """Column -> the value of each client.

    Args:
        metadata: see `from_arrays`.
        names: of the clients, in their order.
        listed: the same in the order in which their rows come.
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
    """A series of pandas whose labels are clients as a mapping; anything else as it is."""
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
    """Lists of values, in the order that their column ``client`` states, or that nobody could take otherwise."""
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


def _warn_if_thin(federation: Federation) -> None:
    """One warning for all clients whose train split can hardly teach a model."""
    train = federation.splits["train"]
    few = [name for name, size in zip(federation.clients, train.sizes.tolist(), strict=True) if size < FEW]
    told = [_listed(few, f"fewer than {FEW} training examples")]
    if federation.task.kind == "classification":
        labels = (federation.targets[rows] for rows in train)
        single = [n for n, own in zip(federation.clients, labels, strict=True) if bool((own == own[0]).all())]
        told.append(_listed([name for name in single if name not in set(few)], "one single class to train on"))
    if any(told):
        warnings.warn(f"{federation.name}: " + "; ".join(filter(None, told)), PluresWarning, stacklevel=4)


def _listed(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} client{'s have' if len(names) > 1 else ' has'} {what} ({shown})"


def _absent(cells: Sequence[Any]) -> Array:
    """Which cells hold None, NaN, or the missing value of pandas (whose comparison with itself is no truth value)."""
    return np.array([cell is None or type(cell).__name__ == "NAType" or cell != cell for cell in cells], dtype=bool)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _array(values: ArrayLike | Tensor) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
