"""Build a federation from arrays, a table, a PyTorch dataset or a folder; check and complete the data on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack, cast, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.cells import absent, alike
from plures.errors import PluresError, PluresWarning, suggestion
from plures.federation.doubts import doubts
from plures.federation.encode import Column, Decided, Encoded, encode
from plures.federation.federation import Federation
from plures.federation.metadata import MISSING_VALUES, Metadata, metadata_of
from plures.federation.options import checked
from plures.federation.preparation import Preparation
from plures.federation.splits import SplitRule, split_rows
from plures.files import NO_ARCHIVE
from plures.names import coded, named
from plures.tasks import Task, task_of
from plures.tasks.reading import refuse

Array = NDArray[Any]


class Options(TypedDict, total=False):
    """What every builder takes; see `from_arrays`."""

    name: str
    task: Task | str | None
    classes: Sequence[object] | None
    metadata: Metadata | None
    split: SplitRule | None
    seed: int
    missing: Literal["error", "impute"]
    standardize: bool
    standardize_targets: bool
    dtype: torch.dtype
    copies: Literal["warn", "allow"]
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
    key: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from arrays and the client of each row.

    A row is in the same split whatever the order in which rows are listed, the type of the numbers, and the other
    clients. Without ``key`` the split moves when an input column comes or goes, for then rows are told apart by
    their inputs.

    Args:
        inputs: ``(n, *features)`` numbers; NaN is a missing value, infinity an error.
        targets: ``(n,)`` integers, booleans or strings (classification), or ``(n,)`` or ``(n, outputs)`` floating
            point (regression).
        client: ``(n,)`` names, or numbers that become names; a negative number leaves the row out (see the
            partitioners, whose result goes here).
        groups: ``(n,)`` rows of one client with the same value stay in one split.
        time: ``(n,)`` order of the rows, with ``split=SplitRule(by="time")``.
        key: ``(n,)`` what a row is known by, such as the number of the case: different for all rows of a client.
        columns: names of the entries of the inputs' first feature dimension, for messages and reports.

    Options:
        name: of the federation (default ``data``).
        task: a :class:`plures.tasks.Task`, such as ``Classification(class_weights={"ill": 3})``; or a name,
            ``classification`` or ``regression``; inferred from the targets' type if not given.
        classes: class names in order; the values that occur, in their order, if not given. A whole number is the class
            of that name if all names are whole numbers, else the position of its class.
        metadata: client -> its row (a mapping), column -> client -> value, or column -> values with a column
            ``client`` that says in which order. Numbers may stand for clients that are numbers. Without that column,
            lists are taken only where every order of the clients (as their rows come, as texts, as numbers) is the
            same.
        split: shares of the splits and how they are drawn (default ``SplitRule()``).
        seed: of random splits (default 0).
        missing: ``error`` (default), or ``impute`` for inputs ``(n, columns)``: a missing value becomes the column's
            mean over the train rows of all clients, and a 0/1 column "<column> is missing" is added for each column
            that has any; metadata column "missing values" counts them per client.
        standardize: inputs to mean 0 and standard deviation 1 over the train rows of all clients, per entry of the
            first feature dimension (column or channel); a constant one and indicator columns are left alone. Like
            the means of ``impute``, these are sums that clients can compute together without showing a row.
        standardize_targets: the same for regression targets. Losses and errors are then on the standardised scale,
            predictions for new rows in the target's own units; ``source`` tells mean and scale.
        dtype: of the inputs (default ``torch.float32``; an integer type keeps tokens).
        copies: ``warn`` (default) of validation and test rows that are copies of rows that train, or ``allow``.
        source: origin and licence, for reports.

    Raises:
        PluresError: names the client, row and column at fault and the remedy; also for an option that has no effect.

    Warns:
        PluresWarning: for what is legal and probably not meant: clients with hardly any data, rows of a test split
            that are copies of train rows, whole numbers that may be amounts or classes.

    Examples:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
        >>> hospital = np.array(["Basel", "Graz", "Pisa"]).repeat(20)
        >>> federation = from_arrays(x, y, hospital, name="hospitals")
        >>> federation.clients
        ('Basel', 'Graz', 'Pisa')
    """
    return assemble(_examples(inputs, targets, client, groups, time, key, columns), options, "from_arrays")


def from_frame(
    frame: Frame | Mapping[str, Array],
    *,
    target: str | Sequence[str],
    client: str,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    numbers: Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    key: str | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation from a pandas or polars frame, or a mapping from column names to arrays.

    A feature column of texts, booleans or categories becomes one 0/1 column for each value, named
    ``column=value`` and never standardised; with ``missing="impute"`` a missing value is a level of its own. A text
    column with more than 30 values, or whose values look like numbers or dates, is refused until it is named in
    ``categories``, ``numbers`` or ``drop``.

    A row is in the same split whichever columns are used and whatever their types: rows are told apart by ``key``,
    else by the index of a pandas frame, else by their order inside their client.

    Args:
        frame: one row per example.
        target: column to predict; several for regression with several outputs.
        client: column with the client of each row (any metadata column can serve: that is the partition by metadata).
        features: input columns; all that are not named otherwise if not given.
        drop: columns that are no inputs.
        categories: columns with an input for each value, however many there are; also numbers that are codes.
        numbers: columns of texts to read as numbers; a cell that is none is missing.
        group: column whose equal values stay in one split.
        time: column that orders the rows, with ``split=SplitRule(by="time")``; dates are fine.
        key: column that is different for all rows of a client, such as the number of the case.
        options: see `from_arrays`.

    Raises:
        PluresError: among others for a column that is not there, naming the one that was probably meant.

    Warns:
        PluresWarning: also for a column that nobody asked for by name and that is constant, a different whole number
            in every row, or has values that each occur at one client only.

    Examples:
        >>> table = {"ward": ["A"] * 30 + ["B"] * 30, "ill": ["no", "yes"] * 30, "age": list(range(40, 60)) * 3}
        >>> federation = plures.from_frame(table, target="ill", client="ward", name="wards")
        >>> federation.clients, federation.columns, federation.task.classes
        (('A', 'B'), ('age',), ('no', 'yes'))
    """
    marks = {"group": group, "time": time, "key": key}
    decided = {"features": features, "drop": drop, "categories": categories, "numbers": numbers}
    return assemble(_rows(frame, target, client, marks, decided, options), options, "from_frame", FRAME)


def by_content(
    frame: Mapping[str, Array],
    *,
    target: str,
    client: str,
    features: Sequence[str],
    categories: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """`from_frame` for the named data sets, in which a row is known by the content of its features."""
    decided = {"features": features, "categories": categories}
    rows = _rows(frame, target, client, {}, decided, options)
    content = zip(*(frame[column].tolist() for column in features), strict=True)
    keys = np.array([_digest(repr(row).encode()) for row in content])
    return assemble(replace(rows, keys=keys), options, "from_frame", FRAME)


def from_dataset(
    dataset: MapDataset,
    client: ArrayLike | Tensor,
    *,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    key: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from a map-style PyTorch dataset of (input, target) pairs.

    Every item is read once and kept in memory, so transforms of the dataset are applied once.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; all inputs of one shape.
        client: ``(len(dataset),)`` client of each item.
        groups: see `from_arrays`.
        time: see `from_arrays`.
        key: see `from_arrays`.
        columns: see `from_arrays`.
        options: see `from_arrays`.

    Examples:
        >>> pairs = [(torch.tensor([float(i)]), i % 2) for i in range(60)]
        >>> federation = plures.from_dataset(pairs, client=["A", "B", "C"] * 20)
        >>> federation.clients, tuple(federation.inputs.shape)
        (('A', 'B', 'C'), (60, 1))
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise PluresError(
            f"dataset: a {type(dataset).__name__} has no length or no items by number; give a map-style dataset of "
            "(input, target) pairs"
        )
    inputs: list[Array] = []
    targets: list[Array] = []
    for position in range(len(dataset)):
        item = dataset[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PluresError(f"dataset item {position}: expected an (input, target) pair, got {type(item).__name__}")
        inputs.append(_array(item[0], f"dataset item {position}, input"))
        targets.append(_array(item[1], f"dataset item {position}, target", scalar=True))
        for what, values in (("input", inputs), ("target", targets)):
            if values[-1].shape != values[0].shape:
                raise PluresError(
                    f"dataset item {position}: {what} of shape {values[-1].shape}, but item 0 has {values[0].shape}; "
                    "crop or pad to one shape"
                )
    if not inputs:
        raise PluresError("the dataset is empty: give at least one item")
    rows = _examples(np.stack(inputs), np.stack(targets), client, groups, time, key, columns)
    return assemble(rows, options, "from_dataset")


def from_folder(path: str | Path, *, columns: Sequence[str] = (), **options: Unpack[Options]) -> Federation:
    """A federation from a folder with one ``.npz`` file per client; the file's stem is the client's name.

    Each file holds ``x`` ``(n_i, *features)`` and ``y`` ``(n_i,)`` or ``(n_i, outputs)``, and may hold ``group``,
    ``time`` and ``key`` (either all files or none). Pickled objects are refused.

    Args:
        path: the folder.
        columns: see `from_arrays`.
        options: see `from_arrays`; the name is that of the folder if not given.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> for client in ("A", "B"):
        ...     np.savez(folder / f"{client}.npz", x=np.arange(90.0).reshape(30, 3), y=np.arange(30) % 2)
        >>> plures.from_folder(folder, copies="allow").clients
        ('A', 'B')
    """
    folder = Path(path)
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise PluresError(_no_folder(folder))
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
        if options.get("task") is None and FAMILIES[part["y"].dtype.kind] != FAMILIES[first["y"].dtype.kind]:
            raise PluresError(
                f"{file}: y is of type {part['y'].dtype}, but of type {first['y'].dtype} in {files[0].name}: save all "
                "in one type, or say task="
            )
    joined = {key: np.concatenate([part[key] for part in parts]) for key in first}
    client = np.repeat([file.stem for file in files], [len(part["x"]) for part in parts])
    options.setdefault("name", folder.name)
    rows = _examples(*(joined["x"], joined["y"], client), joined.get("group"), None, joined.get("key"), columns)
    rule = checked({**options}, HINTS, "from_folder", ("columns",)).get("split")
    if "time" in joined and rule is not None and rule.by == "time":
        rows = replace(rows, time=joined["time"])
    elif "time" in joined:
        warnings.warn(
            f'{folder}: the files hold time, but the split is random; say split=SplitRule(by="time") to train on the '
            "earliest rows and test on the latest",
            PluresWarning,
            stacklevel=2,
        )
    return assemble(rows, options, "from_folder", ("columns",))


def _no_folder(folder: Path) -> str:
    """Why a folder has no file to read."""
    if folder.is_file():
        return f"{folder} is a file: give the folder with one .npz file per client, or read it and use from_frame"
    if not folder.is_dir():
        return f"{folder}: no such folder; give one with a .npz file per client"
    others = dict.fromkeys(file.suffix for file in sorted(folder.iterdir()) if file.suffix)
    held = f"; it holds {', '.join(others)} files" if others else ""
    return f"no .npz file in {folder}{held}: expected one per client, with arrays x and y"


def _read_client(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            part = {key: archive[key] for key in ("x", "y", "group", "time", "key") if key in archive.files}
    except NO_ARCHIVE as error:
        raise PluresError(
            f"{file}: cannot be read as .npz without pickled objects ({error}); write it again"
        ) from error
    for key in ("x", "y"):
        if key not in part:
            raise PluresError(f"{file}: array {key!r} is missing; each client's file holds x and y")
    if part["x"].dtype.kind not in "fiub":
        raise PluresError(f"{file}: x of type {part['x'].dtype} is no number; encode it, or use from_frame")
    if part["y"].dtype.kind not in FAMILIES:
        raise PluresError(f"{file}: y of type {part['y'].dtype} is neither classes nor numbers")
    lengths = {key: len(values) if values.ndim else 0 for key, values in part.items()}
    if len(set(lengths.values())) > 1:
        raise PluresError(f"{file}: lengths differ: {', '.join(f'{key} {n}' for key, n in lengths.items())}")
    if lengths["x"] == 0:
        raise PluresError(f"{file}: client {file.stem!r} has no row; give it data or remove the file")
    return part


@brief
@dataclass(frozen=True)
class Examples:
    """What every builder ends with.

    Attributes:
        inputs: ``(n, *features)``.
        targets: ``(n,)`` or ``(n, outputs)``.
        client: ``(n,)``.
        groups: ``(n,)`` or None.
        time: ``(n,)`` or None.
        key: ``(n,)`` what a row is known by, or None.
        columns: names of the entries of the first feature dimension, or none.
        keys: ``(n,)`` sortable digests by which rows are told apart instead of by their inputs, or None.
        labels: ``(n,)`` what a row is known by where these are different for all rows of a client, or None.
        ordered: without key and labels, rows are told apart by their order.
        scalable: ``(columns,)`` which may be standardised; all if None.
        missing: ``(n,)`` missing values that the inputs do not show.
        doubts: what is probably not meant, in words.
        table: the columns of the table that the inputs were made of.
        ignored: its other columns.
    """

    inputs: Array
    targets: Array
    client: Array
    groups: Array | None = None
    time: Array | None = None
    key: Array | None = None
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    keys: Array | None = None
    ordered: bool = False
    scalable: Array | None = None
    missing: Array | None = None
    doubts: tuple[str, ...] = ()
    table: tuple[Column, ...] = ()
    ignored: tuple[str, ...] = ()


HINTS = get_type_hints(Options)
ARRAYS = ("groups", "time", "key", "columns")
FRAME = ("features", "drop", "categories", "numbers", "group", "time", "key")
FAMILIES = {"i": "class", "u": "class", "b": "class", "U": "text", "S": "text", "f": "number"}
"""Kind of a target's type -> what it stands for; a folder's files must agree."""


def _examples(
    inputs: ArrayLike | Tensor,
    targets: ArrayLike | Tensor,
    client: ArrayLike | Tensor,
    groups: ArrayLike | Tensor | None,
    time: ArrayLike | Tensor | None,
    key: ArrayLike | Tensor | None,
    columns: Sequence[str],
) -> Examples:
    """Arrays of whatever was given."""
    return Examples(
        inputs=_array(inputs, "inputs"),
        targets=_array(targets, "targets"),
        client=_array(client, "client"),
        groups=None if groups is None else _array(groups, "groups"),
        time=None if time is None else _array(time, "time"),
        key=None if key is None else _array(key, "key"),
        columns=tuple(map(str, columns)),
    )


def _rows(
    frame: Frame | Mapping[str, Array],
    target: str | Sequence[str],
    client: str,
    marks: Mapping[str, str | None],
    decided: Mapping[str, Sequence[str] | None],
    options: Options,
) -> Examples:
    """Examples of a table."""
    if hasattr(type(frame), "columns") and not hasattr(frame, "__len__"):
        raise PluresError(f"a {type(frame).__name__} has no rows yet: read it first, with collect() or compute()")
    if not isinstance(frame, Mapping) and not hasattr(frame, "columns"):
        raise PluresError(f"a {type(frame).__name__} is no table; give a frame, or a mapping from columns to arrays")
    by_name = {str(column): column for column in (frame if isinstance(frame, Mapping) else frame.columns)}
    there = [str(column) for column in (frame if isinstance(frame, Mapping) else frame.columns)]
    several = isinstance(target, Collection) and not isinstance(target, str)
    targets = [str(column) for column in (target if several else (target,))]
    client, marks = str(client), {role: column if column is None else str(column) for role, column in marks.items()}
    features, said = _features(there, targets, client, marks, decided)

    def column_of(column: str) -> Array:
        values = frame[by_name[column]]
        array = values if isinstance(values, np.ndarray) else _array(values, f"column {column!r}")
        if array.ndim != 1:
            raise PluresError(f"column {column!r} has shape {array.shape}; give one value per row")
        return array

    said = replace(said, impute=options.get("missing", "error") == "impute")
    raw = [(column, column_of(column), _categorical(frame[by_name[column]])) for column in features]
    lengths = {column: len(values) for column, values, _ in raw}
    if len(set(lengths.values())) > 1:
        raise PluresError(f"columns differ in length: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    encoded = [encode(column, values, categorical, said) for column, values, categorical in raw]
    wanted = [column_of(column) for column in targets]
    owner = column_of(client)
    own = {role: None if column is None else column_of(column) for role, column in marks.items()}
    told = [part.doubt for part in encoded if part.doubt] + _of_one_client(features, encoded, owner, said)
    return Examples(
        inputs=np.column_stack([part.values for part in encoded]),
        targets=np.column_stack(wanted) if several else wanted[0],
        client=owner,
        groups=own.get("group"),
        time=own.get("time"),
        key=own.get("key"),
        labels=_labels(frame),
        columns=tuple(name for part in encoded for name in part.names),
        ordered=True,
        scalable=np.concatenate([np.full(len(part.names), part.numeric) for part in encoded]),
        missing=np.sum([part.missing for part in encoded], axis=0),
        doubts=(*_alike(there), *told),
        table=tuple(part.column for part in encoded),
        ignored=tuple(column for column in there if column not in features),
    )


def _features(
    there: Sequence[str],
    targets: Sequence[str],
    client: str,
    marks: Mapping[str, str | None],
    decided: Mapping[str, Sequence[str] | None],
) -> tuple[list[str], Decided]:
    """The input columns, and what was said of them."""
    twice = [column for place, column in enumerate(there) if column in there[:place]]
    if twice:
        raise PluresError(f"column {twice[0]!r} stands twice in the table; rename or remove one")
    for name, columns in decided.items():
        if isinstance(columns, str):
            raise PluresError(f"{name}={columns!r}: give a list of columns, [{columns!r}]")
    lists = {name: [str(column) for column in columns] for name, columns in decided.items() if columns is not None}
    roles = [*targets, client, *(column for column in marks.values() if column is not None)]
    for column in [*roles, *(column for columns in lists.values() for column in columns)]:
        if column not in there:
            near = suggestion(column, there, "its columns are")
            raise PluresError(f"no column {column!r} in the table; {near}")
    drop = lists.get("drop", [])
    features = lists.get("features")
    if features is not None and drop:
        raise PluresError("drop: with features= it has no effect; leave the columns out of features instead")
    if features is None:
        features = [column for column in there if column not in roles and column not in drop]
    if not features:
        raise PluresError("the table has no feature column: every column has another role")
    for name in ("categories", "numbers"):
        for column in lists.get(name, []):
            if column not in features:
                raise PluresError(f"{name}: column {column!r} is no input; leave it out of {name}")
    both = [column for column in lists.get("categories", []) if column in lists.get("numbers", [])]
    if both or len(set(features)) < len(features):
        raise PluresError(f"column {both[0] if both else features[0]!r} stands in two lists; give it in one, once")
    named = [column for columns in lists.values() for column in columns]
    return features, Decided(lists.get("categories", []), lists.get("numbers", []), named)


def _categorical(values: Any) -> bool:
    """Whether a column of a frame is declared to be a category."""
    return str(getattr(values, "dtype", "")).lower().startswith(("category", "categorical", "enum"))


def _labels(frame: Any) -> Array | None:
    """The index of a pandas frame."""
    return np.array([str(label) for label in frame.index]) if hasattr(frame, "iloc") else None


def _alike(there: Sequence[str]) -> list[str]:
    return [f"columns {one!r} and {other!r} differ by case or blanks alone" for one, other in alike(there)]


def _of_one_client(features: Sequence[str], encoded: Sequence[Encoded], owner: Array, said: Decided) -> list[str]:
    """Text columns that tell nothing but the client."""
    told = []
    for column, part in zip(features, encoded, strict=True):
        if part.numeric or column in said.named or len(part.names) < 2 or len(owner) != len(part.values):
            continue
        pairs = {*zip(part.values.argmax(1).tolist(), owner.tolist(), strict=True)}
        if len(pairs) == len({level for level, _ in pairs}) and len({name for _, name in pairs}) > 1:
            told.append(f"column {column!r} names the client: each of its values occurs at one client only")
    return told


def assemble(data: Examples, given: Options, where_from: str, also: Sequence[str] = ARRAYS) -> Federation:
    """Check, split, complete and scale: the one place where a federation is made.

    Args:
        data: the rows.
        given: options of `from_arrays`.
        where_from: name of the builder, for messages.
        also: names of its other arguments.
    """
    options = cast(Options, checked({**given}, HINTS, where_from, also))
    n = len(data.inputs)
    groups, time = data.groups, data.time
    marks = (("groups", groups), ("time", time), ("key", data.key))
    for label, column in (("targets", data.targets), ("client", data.client), *marks):
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
    twice = [column for place, column in enumerate(data.columns) if column in data.columns[:place]]
    if twice:
        raise PluresError(f"columns: {twice[0]!r} stands there twice; rename or remove one")
    where = _Where(client, rows, data.columns)
    for label, column in (("group", groups), ("time", time), ("key", data.key)):
        if column is not None:
            gaps = torch.from_numpy(_gaps(column[rows]))
            refuse(gaps, f"no {label}; complete it or leave the row out", where)
    rule = options.get("split") or SplitRule()
    if time is not None and rule.by != "time":
        raise PluresError(
            'time: the split is random, so it has no effect; say split=SplitRule(by="time"), or leave it out'
        )
    if rule.by == "time" and options.get("seed", 0) != 0:
        raise PluresError(f"seed={options.get('seed')}: a split by time draws nothing; leave the seed out")
    task, targets = task_of(data.targets[rows], options.get("task"), options.get("classes"), where)
    if options.get("standardize_targets", False) and task.probable:
        raise PluresError(f"standardize_targets: {task.called} have no scale; leave it out, or say task='regression'")
    raw = data.inputs[rows] if len(rows) < n else data.inputs
    inputs = _inputs(raw, options, where)
    names, splits = split_rows(
        client,
        labels=task.strata(targets),
        groups=kept(groups),
        time=kept(time),
        keys=_keys(data, rows, client, raw, inputs.is_floating_point()),
        rule=rule,
        seed=options.get("seed", 0),
    )
    train = splits["train"].rows
    metadata = metadata_of(options.get("metadata"), names, tuple(dict.fromkeys(client.tolist())))
    scalable = torch.ones(inputs.shape[1], dtype=torch.bool) if inputs.ndim > 1 else torch.ones(0, dtype=torch.bool)
    if data.scalable is not None:
        scalable = torch.from_numpy(data.scalable)
    columns, made = data.columns, Preparation(data.table, data.ignored)
    if options.get("missing", "error") == "impute":
        gaps = torch.isnan(inputs)
        per_row = gaps.flatten(1).sum(1).numpy()
        if data.missing is not None:
            per_row = per_row + data.missing[rows]
        count = np.bincount(coded(client)[1], weights=per_row)
        metadata[MISSING_VALUES] = tuple(int(c) for c in count)
        inputs, columns, scalable, fill, places = _impute(inputs, gaps, train, columns, scalable)
        made = replace(made, fill=fill, gaps=places)
    scaling = None
    if options.get("standardize", False):
        mean, scale = _moments(inputs, train)
        mean, scale = scaling = torch.where(scalable, mean, 0), torch.where(scalable, scale, 1)
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        inputs = inputs.sub_(mean.to(inputs.dtype).view(shape)).div_(scale.to(inputs.dtype).view(shape))
    source = options.get("source", "")
    if options.get("standardize_targets", False):
        mean, scale = _moments(targets, train)
        made = replace(made, target=(mean, scale))
        targets = made.scaled_targets(targets)
        told = ", ".join(f"mean {m:.6g}, scale {s:.6g}" for m, s in zip(mean.tolist(), scale.tolist(), strict=True))
        told = f"targets standardised ({told}): errors are on that scale, predictions for new rows in their own units"
        source = f"{source}; {told}" if source else told
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
        preparation=made if made.table or made.fill is not None or made.target is not None else None,
    )
    found = [*data.doubts, *doubts(federation, options.get("copies", "warn") == "warn")]
    if found:
        warnings.warn(f"{federation.name}: {'; '.join(found)}", PluresWarning, stacklevel=3)
    return federation


def _keys(data: Examples, rows: Array, client: Array, raw: Array, floating: bool) -> Array | None:
    """``(rows,)`` digests by which a client's rows are told apart; None for their order."""
    if data.keys is not None:
        return data.keys[rows]
    known = data.labels if data.key is None else data.key
    if known is None:
        return None if data.ordered else _content(raw, floating)
    text = _texts(known[rows])
    pairs = np.char.add(np.char.add(client, "\x1f"), text)
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if (counts > 1).any() and data.key is None:
        return None
    if (counts > 1).any():
        at = int(first[counts > 1][0])
        raise PluresError(
            f"key: {str(text[at])!r} stands for {int(counts.max())} rows of client {str(client[at])!r}; each row needs "
            "its own"
        )
    return np.array([_digest(key.encode()) for key in text.tolist()])


def _content(raw: Array, floating: bool) -> Array:
    """``(rows,)`` digests of inputs, the same for all types that hold the same numbers."""
    with np.errstate(over="ignore"):
        values = raw.reshape(len(raw), -1).astype(np.float32 if floating else np.int64, copy=False)
    return np.array([_digest(row.tobytes()) for row in np.ascontiguousarray(values)])


def _texts(values: Array) -> Array:
    """A text for each value, the same for all types that hold the same whole number."""
    if values.dtype.kind in "fO":
        return np.array([str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()])
    return values.astype(str)


def _gaps(values: Array) -> Array:
    """Which values are missing."""
    return absent(values.tolist()) if values.dtype.kind in "OU" else values != values


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
        gaps = absent(client.tolist())
        if gaps.any():
            raise PluresError(f"client column, row {int(gaps.argmax())}: no client; give every row a client")
    if client.dtype.kind == "O" and all(type(cell) is int for cell in client.tolist()):
        client = client.astype(np.int64)
    used = client >= 0 if client.dtype.kind == "i" else np.ones(len(client), dtype=bool)
    if not used.any():
        raise PluresError("client column: every row is left out (negative); give at least one row a client")
    return named(client[used]), used


def _inputs(inputs: Array, options: Options, where: _Where) -> Tensor:
    """Checked inputs in their final type; NaN only where it will be imputed."""
    dtype = options.get("dtype", torch.float32)
    missing = options.get("missing", "error")
    if inputs.ndim < 2:
        inputs = inputs.reshape(len(inputs), 1)
    if missing == "impute" and inputs.ndim != 2:
        raise PluresError(f'missing="impute" needs inputs (n, columns), got {inputs.shape}; complete the data yourself')
    if inputs.dtype.kind not in "fiub":
        raise PluresError(f"inputs of type {inputs.dtype} are no numbers; encode them, or use from_frame")
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
        what = (
            "an infinite value; correct it" if bool(torch.isinf(values[at][bad[at]]).any()) else "a missing value (NaN)"
        )
        remedy = "" if missing == "impute" else ' or leave the row out, or fill NaN with missing="impute"'
        raise PluresError(f"{where(at, column)}: {what}{remedy}")
    return values


def _impute(
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
    told = tuple(f"{name} is missing" for name, gap in zip(names, gaps.tolist(), strict=True) if gap)
    return (
        torch.cat([filled, indicators], 1),
        names + told,
        torch.cat([scalable, torch.zeros(len(told), dtype=torch.bool)]),
        mean,
        tuple(gaps.nonzero().flatten().tolist()),
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


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _array(values: ArrayLike | Tensor, what: str, scalar: bool = False) -> Array:
    """Whatever was given as an array.

    Args:
        values: a tensor, or anything that NumPy makes an array of.
        what: it is, for messages.
        scalar: a single value will do.
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
            f"{what}: a {type(values).__name__} is no array; give numbers in an array or a tensor, or use from_frame "
            "for columns with names"
        )
    return array
