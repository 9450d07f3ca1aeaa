"""A federation from a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from plures.cells import alike
from plures.errors import PluresError, suggestion
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Examples, as_array
from plures.federation.build.keys import digest
from plures.federation.build.options import Options
from plures.federation.encode import Decided, Encoded, encode
from plures.federation.federation import Federation
from plures.federation.subgroups import parsed

Array = NDArray[Any]


class Frame(Protocol):
    """A pandas or polars frame."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, column: str, /) -> Any: ...


FRAME = ("features", "drop", "categories", "numbers", "group", "time", "key", "weight", "subgroups")


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
    weight: str | None = None,
    subgroups: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from a pandas or polars frame, or a mapping from column names to arrays.

    A feature column of texts, booleans or categories becomes one 0/1 column for each value, named
    ``column=value`` and never standardised; with ``missing="impute"`` a missing value is a level of its own. A text
    column with more than 30 values, or whose values look like numbers or dates, is refused until it is named in
    ``categories``, ``numbers`` or ``drop``.

    A row's split does not depend on which columns are used or on their types: rows are identified by ``key``, else by
    the index of a pandas frame, else by their order within their client.

    Args:
        frame: one row per example.
        target: column to predict; several for regression with several outputs, and for labels of 0 and 1, which they
            name, with ``task="multilabel"``.
        client: column with the client of each row (any metadata column can serve: that is the partition by metadata).
        features: input columns; default: all that have no other role.
        drop: columns that are not inputs.
        categories: columns with one input per value, however many there are; also numbers that are codes.
        numbers: text columns to read as numbers; a cell that is not a number is missing.
        group: column whose equal values stay in one split.
        time: column that orders the rows, with ``split=SplitRule(by="time")``; dates are fine.
        key: column that is different for all rows of a client, such as a case number.
        weight: column that says how much each example counts; see ``weights`` of `from_arrays`.
        subgroups: columns by which results are reported, too, such as ``sex`` or ``age:40,60``; no inputs unless they
            are named in ``features``. See `from_arrays`.
        options: see `from_arrays`.

    Raises:
        PluresError: among others for an unknown column, suggesting the one that was probably meant.

    Warns:
        PluresWarning: also for a column that was not requested by name and is constant, a different integer in every
            row, or has values that each occur at only one client.

    Examples:
        >>> table = {"ward": ["A"] * 30 + ["B"] * 30, "ill": ["no", "yes"] * 30, "age": list(range(40, 60)) * 3}
        >>> federation = plures.from_frame(table, target="ill", client="ward", name="wards")
        >>> federation.clients, federation.columns, federation.task.classes
        (('A', 'B'), ('age',), ('no', 'yes'))
    """
    marks = {"group": group, "time": time, "key": key, "weight": weight}
    decided = {"features": features, "drop": drop, "categories": categories, "numbers": numbers}
    return assemble(_rows(frame, target, client, marks, decided, options, subgroups), options, "from_frame", FRAME)


def by_content(
    frame: Mapping[str, Array],
    *,
    target: str,
    client: str,
    features: Sequence[str],
    categories: Sequence[str] = (),
    given: Array | None = None,
    **options: Unpack[Options],
) -> Federation:
    """`from_frame` for the named data sets, in which a row is identified by its features.

    Their official splits are ``given``, the position in ``SPLITS`` of each row.
    """
    decided = {"features": features, "categories": categories}
    rows = _rows(frame, target, client, {}, decided, options)
    content = zip(*(frame[column].tolist() for column in features), strict=True)
    keys = np.array([digest(repr(row).encode()) for row in content])
    return assemble(replace(rows, keys=keys, given=given), options, "from_frame", FRAME)


def _rows(
    frame: Frame | Mapping[str, Array],
    target: str | Sequence[str],
    client: str,
    marks: Mapping[str, str | None],
    decided: Mapping[str, Sequence[str] | None],
    options: Options,
    subgroups: Sequence[str] = (),
) -> Examples:
    """Examples of a table."""
    if hasattr(type(frame), "columns") and not hasattr(frame, "__len__"):
        raise PluresError(f"a {type(frame).__name__} has no rows yet: read it first, with collect() or compute()")
    if not isinstance(frame, Mapping) and not hasattr(frame, "columns"):
        raise PluresError(f"a {type(frame).__name__} is not a table; give a frame, or a mapping from columns to arrays")
    by_name = {str(column): column for column in (frame if isinstance(frame, Mapping) else frame.columns)}
    there = [str(column) for column in (frame if isinstance(frame, Mapping) else frame.columns)]
    several = isinstance(target, Collection) and not isinstance(target, str)
    targets = [str(column) for column in (target if several else (target,))]
    client, marks = str(client), {role: column if column is None else str(column) for role, column in marks.items()}
    if isinstance(subgroups, str):
        raise PluresError(f"subgroups={subgroups!r}: give a list of columns, [{subgroups!r}]")
    apart = {text: parsed(text)[0] for text in map(str, subgroups)}
    features, said = _features(there, targets, client, marks, decided, list(apart.values()))

    def column_of(column: str) -> Array:
        values = frame[by_name[column]]
        array = values if isinstance(values, np.ndarray) else as_array(values, f"column {column!r}")
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
    doubts = [part.doubt for part in encoded if part.doubt] + _of_one_client(features, encoded, owner, said)
    return Examples(
        inputs=np.column_stack([part.values for part in encoded]),
        targets=np.column_stack(wanted) if several else wanted[0],
        client=owner,
        groups=own.get("group"),
        time=own.get("time"),
        key=own.get("key"),
        weights=own.get("weight"),
        labels=_labels(frame),
        columns=tuple(name for part in encoded for name in part.names),
        ordered=True,
        scalable=np.concatenate([np.full(len(part.names), part.numeric) for part in encoded]),
        missing=np.sum([part.missing for part in encoded], axis=0),
        doubts=(*_alike(there), *doubts),
        table=tuple(part.column for part in encoded),
        ignored=tuple(column for column in there if column not in features),
        answers=tuple(targets) if several else (),
        subgroups={text: column_of(column) for text, column in apart.items()},
    )


def _features(
    there: Sequence[str],
    targets: Sequence[str],
    client: str,
    marks: Mapping[str, str | None],
    decided: Mapping[str, Sequence[str] | None],
    apart: Sequence[str] = (),
) -> tuple[list[str], Decided]:
    """The input columns, and the user's decisions about them.

    Args:
        there: columns of the table.
        targets: columns to predict.
        client: column of the client.
        marks: role -> its column.
        decided: option -> columns that it names.
        apart: columns of subgroups, which are inputs only if they are named among the features.
    """
    twice = [column for place, column in enumerate(there) if column in there[:place]]
    if twice:
        raise PluresError(f"column {twice[0]!r} occurs twice in the table; rename or remove one")
    for name, columns in decided.items():
        if isinstance(columns, str):
            raise PluresError(f"{name}={columns!r}: give a list of columns, [{columns!r}]")
    lists = {name: [str(column) for column in columns] for name, columns in decided.items() if columns is not None}
    roles = [*targets, client, *(column for column in marks.values() if column is not None)]
    for column in [*roles, *apart, *(column for columns in lists.values() for column in columns)]:
        if column not in there:
            near = suggestion(column, there, "its columns are")
            raise PluresError(f"no column {column!r} in the table; {near}")
    drop = lists.get("drop", [])
    features = lists.get("features")
    if features is not None and drop:
        raise PluresError("drop: with features= it has no effect; leave the columns out of features instead")
    if features is None:
        features = [column for column in there if column not in (*roles, *drop, *apart)]
    if not features:
        raise PluresError("the table has no feature column: every column has another role")
    for name in ("categories", "numbers"):
        for column in lists.get(name, []):
            if column not in features:
                raise PluresError(f"{name}: column {column!r} is not an input; leave it out of {name}")
    both = [column for column in lists.get("categories", []) if column in lists.get("numbers", [])]
    if both or len(set(features)) < len(features):
        raise PluresError(f"column {both[0] if both else features[0]!r} is given twice; give it in one list, once")
    named = [column for columns in lists.values() for column in columns]
    return features, Decided(lists.get("categories", []), lists.get("numbers", []), named)


def _categorical(values: Any) -> bool:
    """Whether a column of a frame is declared to be a category."""
    return str(getattr(values, "dtype", "")).lower().startswith(("category", "categorical", "enum"))


def _labels(frame: Any) -> Array | None:
    """The index of a pandas frame."""
    return np.array([str(label) for label in frame.index]) if hasattr(frame, "iloc") else None


def _alike(there: Sequence[str]) -> list[str]:
    return [f"columns {one!r} and {other!r} differ only by case or blanks" for one, other in alike(there)]


def _of_one_client(features: Sequence[str], encoded: Sequence[Encoded], owner: Array, said: Decided) -> list[str]:
    """Text columns that only identify the client."""
    doubts = []
    for column, part in zip(features, encoded, strict=True):
        if part.numeric or column in said.named or len(part.names) < 2 or len(owner) != len(part.values):
            continue
        pairs = {*zip(part.values.argmax(1).tolist(), owner.tolist(), strict=True)}
        if len(pairs) == len({level for level, _ in pairs}) and len({name for _, name in pairs}) > 1:
            doubts.append(f"column {column!r} names the client: each of its values occurs at one client only")
    return doubts
