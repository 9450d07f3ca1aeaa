"""A federation from a table, by a schema that is given, or that is drafted and fitted to its train rows."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plures.brief import brief
from plures.errors import PluresError, suggestion
from plures.federation import SPLITS, Federation, SplitRule
from plures.federation.subgroups import parsed
from plures.files import write_text
from plures.names import in_order, name_of
from plures.tables.draft import Draft
from plures.tables.finding import Finding, FoundError
from plures.tables.schema import Metadata, Number, Reading, Schema
from plures.tables.table import READERS, Cells, absent, columns, distinct, lines_of, read_table, text
from plures.tables.table import numbers as numbers_of
from plures.tasks import KINDS, Task

SPLIT = "split"
"""Name of the column that says which rows came from the test file."""
SAYS = """# What the columns of the table are. Its numbers were fitted to the train rows. To change it, edit a copy, and
# give that with --schema: it is then used as it is. As the [schema] of a federation of sites, it makes the same
# inputs there.
"""
"""The beginning of a file of a schema."""
SUBGROUP = "it tells subgroups, and features do not name it"
"""Why a column of subgroups is no input."""
CLIENT = "client"
"""Name of the column that says from which client's file a row came."""


@brief
@dataclass(frozen=True)
class Part:
    """A table of some of the rows.

    Attributes:
        file: where it was read from; empty for rows in memory.
        table: column -> cells.
        client: whose rows they are, if the file says so.
        frame: the frame that it was made of, if it was.
    """

    file: str
    table: Mapping[str, Cells]
    client: str | None = None
    frame: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.table.values()), ()))


def is_table(data: str) -> bool:
    """Whether a text names a file with a table, or a folder of such files."""
    path = Path(data)
    return path.suffix.lower() in READERS or (path.is_dir() and bool(_files(path)))


def from_table(
    data: Any,
    *,
    client: str | None = None,
    target: str | Sequence[str] | None = None,
    schema: Schema | str | Path | None = None,
    test: Any = None,
    task: Task | str | None = None,
    classes: Sequence[object] | None = None,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    numbers: Sequence[str] = (),
    ordered: Mapping[str, Sequence[str]] | None = None,
    dates: Mapping[str, str] | None = None,
    zero_is_missing: Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    key: str | None = None,
    split_column: str | None = None,
    fold: str | int | None = None,
    split: SplitRule | None = None,
    seed: int = 0,
    subgroups: Sequence[str] = (),
    metadata: Metadata | None = None,
    copies: Literal["warn", "allow"] = "warn",
    name: str | None = None,
    source: str = "",
) -> Federation:
    """A federation from a table, by the same code that reads the table of a site.

    The columns are examined and declared in a :class:`~plures.tables.Schema`: numbers, dates, booleans, categories and
    ordered levels become inputs; constants, identifiers, free text and columns that name the client do not. Means,
    deviations and the levels of categories are those of the train rows of all clients; other values of a category, and
    missing values, are inputs of their own. The schema is kept in the federation (``federation.preparation.schema``),
    so a model reads new rows of a table as it read these, and a site makes the same inputs with ``schema.federation``.

    Args:
        data: a CSV or Parquet file, a folder with one such file per client, a pandas or polars frame, or a mapping from
            columns to values.
        client: column with the client of each row; not for a folder, whose files name the clients.
        target: column to predict; several for labels of 0 and 1, or for a regression with several numbers.
        schema: what the table looks like, or a TOML file with it: nothing is drafted or fitted then, and ``client`` and
            ``test`` are the only other options.
        test: the rows for test, if they come apart: a file, a frame or a mapping. All rows of ``data`` are then for
            training and validation. Without the column of clients, they are a common test set: every client is
            tested on all of them.
        task: what is predicted, or its kind; inferred from the target if not given.
        classes: their names in order; the last of two is the positive one. Sorted if not given.
        features: input columns; all without another role if not given. None that is named here is left out.
        drop: columns that are no inputs.
        categories: columns of numbers that are codes.
        numbers: columns of numbers in which any other text is missing.
        ordered: column -> its values in order.
        dates: column -> how its dates are written, such as ``%d.%m.%Y``, where that is not clear.
        zero_is_missing: columns of numbers in which zero means a missing value.
        group: column whose equal values stay in one split, such as a patient.
        time: column of dates, or of numbers such as cycles or years: the earliest rows of each client train, the latest
            test.
        weight: column that says how much each row counts.
        key: column that is different in all rows of a client, such as a case number: a row then stays in its split
            whatever else changes.
        split_column: column that says ``train``, ``validation`` or ``test`` in each row; or holds folds, with ``fold``.
        fold: the fold for test.
        split: shares of the splits.
        seed: of random splits.
        subgroups: columns by which results are reported, too, such as ``sex``, or ``age:40,60`` with the edges of
            bands. No inputs, unless ``features`` names them or a schema declares them.
        metadata: client -> its metadata.
        copies: ``warn`` about validation and test rows that are copies of train rows, or ``allow`` them.
        name: of the federation; that of the file if not given.
        source: origin and licence, for reports.

    Raises:
        PluresError: names the file, the row and the column at fault.

    Examples:
        >>> rows = {"ward": ["A", "B"] * 30, "age": [*range(20, 50)] * 2, "ill": ["no", "no", "yes"] * 20}
        >>> federation = plures.from_table(rows, client="ward", target="ill", name="wards")
        >>> federation.clients, federation.columns, federation.task.classes
        (('A', 'B'), ('age',), ('no', 'yes'))
    """
    parts = _parts(data, "data")
    client = None if client is None else str(client)  # a frame may name columns by numbers
    own = len(parts)
    parts += [] if test is None else _tested(parts, _parts(test, "test"), client)
    table = _whole(parts)
    if test is not None:
        if split_column is not None or time is not None:
            raise PluresError("test: the rows for test come apart, so leave split_column and time out")
        if SPLIT in table:
            raise PluresError(f"test: the tables have a column {SPLIT!r} of their own; rename it")
        sizes = [sum(map(len, some)) for some in (parts[:own], parts[own:])]
        table[SPLIT], split_column = ["train"] * sizes[0] + ["test"] * sizes[1], SPLIT
    for part in parts:
        if part.table and not len(part):
            raise PluresError(f"{part.file}: the table has no rows; give at least one".removeprefix(": "))
    if parts[0].client is not None:
        if client is not None:
            raise PluresError(f"client={client!r}: the files of a folder name the clients; leave it out")
        table[CLIENT], client = _files_clients(table, parts), CLIENT
    apart = {text: parsed(text)[0] for text in _several(subgroups)}
    for column in apart.values():
        if column not in table:
            with _naming(parts):
                raise PluresError(
                    f"subgroups: no column {column!r} in the table; {suggestion(column, table, 'its columns are')}"
                )
    if schema is not None:
        given = {
            "target": target, "classes": classes, "features": features, "drop": drop, "categories": categories,
            "numbers": numbers, "ordered": ordered, "dates": dates, "zero_is_missing": zero_is_missing, "group": group,
            "time": time, "weight": weight, "key": key, "fold": fold, "split": split, "seed": seed,
        }  # fmt: skip
        for option, value in given.items():
            if value not in (None, (), 0):
                raise PluresError(f"{option}: the schema says it; leave it out, or change the schema")
        declared = schema if isinstance(schema, Schema) else read_schema(Path(schema))
        if split_column is not None and declared.splits.column != split_column:
            raise PluresError("test, split_column: the schema says how rows are divided; leave them out, or change it")
        client = client or declared.client
    else:
        if target is None:
            with _naming(parts):
                raise PluresError(f"target: name the column to predict; columns are {', '.join([*table][:12])}")
        options = Draft(other=True, margin=None)
        options["splits"] = _splits(split or SplitRule(), seed, time, split_column, fold)
        if task is not None:
            options["task"] = _kind(task)
        hidden = [*_several(drop), *(apart.values() if features is None else ())]
        targets = _several(target)
        roles = {*targets, *hidden, client, group, time, weight, key, split_column}
        inputs = [name for name in (table if features is None else _several(features)) if name not in roles]
        orders, codes = _orders(parts), _codes(parts)
        if classes is None and len(targets) == 1 and targets[0] in orders:
            there = distinct(table[targets[0]])
            classes = [level for level in orders[targets[0]] if level in there]
        ranked = {name: orders[name] for name in inputs if name in orders} | {**(ordered or {})}
        coded = [*_several(categories), *(name for name in inputs if name in codes)]
        told: dict[str, Any] = {
            "classes": None if classes is None else tuple(map(text, classes)), "features": _several(features),
            "time": time, "drop": hidden, "group": group, "weight": weight, "key": key,
            "numbers": _several(numbers), "dates": dates, "ordered": ranked, "categories": coded,
            "zero_is_missing": _several(zero_is_missing),
        }  # fmt: skip
        options.update({key: value for key, value in told.items() if value})  # type: ignore[typeddict-item]
        with _naming(parts):
            declared = Schema.of(table, targets, client, **options)
        why = {name: SUBGROUP for name in apart.values() if name in declared.ignored}
        declared = declared.model_copy(update={"ignored": {**declared.ignored, **why}})
    if client is None:
        raise PluresError(
            f"client: name the column with the client of each row; columns are {', '.join([*table][:12])}"
        )
    owner = _owners(table, client, parts)
    reading = declared.read(table)
    refuse_in(parts, reading)
    with _naming(parts):
        _some_test(table, declared, reading)
    tables = _by_client(_parsed(table, declared), owner)
    named = name or (Path(data).stem if isinstance(data, str | Path) else "data")
    made = declared.fit if schema is None else declared.federation
    built = made(named, tables, metadata, copies=copies, source=source, subgroups=[*apart])
    return built.with_task(task) if isinstance(task, Task) else built


def read_rows(path: Path) -> Mapping[str, Cells]:
    """New rows from a file; or from a folder with one file per client, which is then a column."""
    parts = _parts(path, "rows")
    if parts[0].client is None:
        return parts[0].table
    table = _whole(parts)
    return {**table, CLIENT: _files_clients(table, parts)}


def schema_of(federation: Federation) -> Schema | None:
    """The schema by which a federation's data were read; ``None`` for data of another kind."""
    made = federation.preparation
    return made.schema if made is not None and isinstance(made.schema, Schema) else None


def write_schema(schema: Schema, file: Path) -> None:
    """Write a schema to a file that :func:`read_schema` reads, to be read and edited by people."""
    write_text(file, f"{SAYS}\n{schema.to_toml()}")


def keep_schema(federation: Federation, folder: Path) -> None:
    """Write the schema of a federation's data, if they have one, beside its results."""
    if (declared := schema_of(federation)) is not None:
        write_schema(declared, folder / "schema.toml")


def read_schema(file: Path) -> Schema:
    """The schema in a TOML file, such as the one beside the results of a comparison."""
    try:
        declared = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PluresError(f"{file} cannot be read: {error.strerror}; name the file of a schema") from error
    except (ValueError, RecursionError) as error:
        raise PluresError(f"{file} is not valid TOML: {error}") from error
    if not isinstance(declared.get("schema"), dict):
        raise PluresError(f"{file}: the table [schema] is missing; name the file of a schema")
    return Schema.parse(declared["schema"], f"{file}, [schema]")


def refuse_in(parts: Sequence[Part], reading: Reading) -> None:
    """Raise PluresError for the first error in a table, with the file and the row.

    Args:
        parts: the files that the table was put together from.
        reading: the table.
    """
    errors = [finding for finding in reading.findings if finding.level == "error"]
    if not errors:
        return
    raise PluresError(_located(parts, errors[0], f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""))


def _located(parts: Sequence[Part], finding: Finding, more: str = "") -> str:
    """A finding with the file that the first of its rows is in, and the rows there."""
    file = _file(parts)
    if rows := finding.rows:
        starts = np.cumsum([0, *map(len, parts)])
        place = int(np.searchsorted(starts, rows[0], side="left")) - 1
        file = parts[place].file
        rows = tuple(row - int(starts[place]) for row in rows if starts[place] < row <= starts[place + 1])
        finding = replace(finding, rows=rows).at(lines_of(parts[place].table))
    where = [file, *([f"column {finding.column!r}"] if finding.column else []), finding.where]
    return f"{', '.join(word for word in where if word)}: {finding.sentence}{more}".removeprefix(": ")


def _file(parts: Sequence[Part]) -> str:
    """The file that a table came from, or the folder of its files; empty for rows in memory."""
    return parts[0].file if len(parts) == 1 else str(Path(parts[0].file).parent)


def _parts(data: Any, what: str) -> list[Part]:
    """The tables that data consist of."""
    if not isinstance(data, str | Path):
        return [Part("", columns(data), frame=data)]
    path = Path(data)
    if not path.is_dir():
        return [Part(str(path), read_table(path))]
    files = _files(path)
    if not files:
        raise PluresError(f"{what}: {path} holds no file with a table; give one CSV or Parquet file per client")
    twice = [file.stem for place, file in enumerate(files) if file.stem in [other.stem for other in files[:place]]]
    if twice:
        raise PluresError(f"{what}: {path} holds two files of client {twice[0]!r}; keep one")
    return [Part(str(file), read_table(file), file.stem) for file in files]


def _tested(parts: Sequence[Part], test: list[Part], client: str | None) -> list[Part]:
    """The rows for test; if they name no client, those of all clients."""
    if len(test) > 1 or any(part.client is not None for part in test) or client in test[0].table:
        return test
    if client is None and parts[0].client is None:
        return test
    rows = test[0]
    if client is None:
        return [replace(rows, client=part.client) for part in parts]
    with _naming(parts):
        if client not in parts[0].table:
            raise PluresError(
                f"no column {client!r} in the table; {suggestion(client, parts[0].table, 'its columns are')}"
            )
    names = dict.fromkeys(cell for cell in _list(parts[0].table[client]) if not absent(cell))
    return [replace(rows, table={**rows.table, client: [name] * len(rows)}) for name in names]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS and file.is_file())


def _whole(parts: Sequence[Part]) -> dict[str, Cells]:
    """All rows as one table; what a part lacks is missing."""
    if len(parts) == 1:
        return dict(parts[0].table)
    names = dict.fromkeys(name for part in parts for name in part.table)
    return {
        name: [cell for part in parts for cell in _list(part.table.get(name, [None] * len(part)))] for name in names
    }


def _files_clients(table: Mapping[str, Cells], parts: Sequence[Part]) -> list[Any]:
    """The client of each row, from the names of files."""
    if CLIENT in table:
        raise PluresError(f"{parts[0].file}: has a column {CLIENT!r}, but the files name the clients; rename it")
    return [part.client for part in parts for _ in range(len(part))]


def _list(cells: Cells) -> list[Any]:
    found: list[Any] = cells.tolist() if isinstance(cells, np.ndarray) else cells
    return found


@contextmanager
def _naming(parts: Sequence[Part]) -> Iterator[None]:
    """Add the file's name to the message of an error, and say which row of the file it is."""
    try:
        yield
    except FoundError as error:
        raise PluresError(_located(parts, error.finding)) from error
    except PluresError as error:
        raise PluresError(f"{_file(parts)}: {error}" if parts[0].file else str(error)) from error


def _owners(table: Mapping[str, Cells], client: str, parts: Sequence[Part]) -> list[str]:
    """The client of each row."""
    if client not in table:
        with _naming(parts):
            raise PluresError(f"no column {client!r} in the table; {suggestion(client, table, 'its columns are')}")
    cells = _list(table[client])
    for row, cell in enumerate(cells):
        if absent(cell):
            raise PluresError(
                _located(parts, Finding("error", client, "no client", "give every row a client", (row + 1,)))
            )
    return [name_of(text(cell)) for cell in cells]


def _some_test(table: Mapping[str, Cells], schema: Schema, reading: Reading) -> None:
    """Refuse a column of splits that leaves no row for test."""
    column, fold = schema.splits.column, schema.splits.fold
    if column is None or reading.splits is None or bool((reading.splits == SPLITS.index("test")).any()):
        return
    if fold is not None:
        known = in_order(distinct(table[column]))
        raise PluresError(f"fold {fold!r}: column {column!r} has no such value; {suggestion(fold, known, 'it has')}")
    raise PluresError(f"column {column!r}: no row is for test; write test in some, or leave the column of splits out")


def _parsed(table: Mapping[str, Cells], schema: Schema) -> dict[str, Cells]:
    """The table with its numbers read, so that they are read once."""
    plain = [column.name for column in schema.columns if isinstance(column, Number) and not column.marks]
    return {name: numbers_of(cells)[0] if name in plain else cells for name, cells in table.items()}


def _by_client(table: Mapping[str, Cells], owner: Sequence[str]) -> dict[str, dict[str, Cells]]:
    """Client -> its rows."""
    clients = in_order(owner)
    place = {name: number for number, name in enumerate(clients)}
    code = np.array([place[name] for name in owner], dtype=np.int64)
    order = np.argsort(code, kind="stable")
    rows = dict(zip(clients, np.split(order, np.bincount(code).cumsum()[:-1]), strict=True))
    return {
        client: {
            name: cells[own] if isinstance(cells, np.ndarray) else [cells[row] for row in own.tolist()]
            for name, cells in table.items()
        }
        for client, own in rows.items()
    }


def _splits(
    rule: SplitRule, seed: int, time: str | None, column: str | None, fold: str | int | None
) -> dict[str, object]:
    """How rows are divided, as a schema declares it."""
    shares: dict[str, object] = {"seed": seed, "validation": rule.validation, "test": rule.test}
    if fold is not None and column is None:
        raise PluresError("fold: name the column of folds, too, with split_column")
    if time is not None and column is not None:
        raise PluresError("time, split_column: rows are divided by one of the two; leave one out")
    if rule.by == "time" and time is None:
        raise PluresError("split: by='time' needs a column of dates or numbers; name it with time")
    if time is not None:
        return {**shares, "by": "time"}
    if column is None:
        return shares
    return {**shares, "by": "column", "column": str(column), **({} if fold is None else {"fold": str(fold)})}


def _several(columns: Sequence[str] | None) -> tuple[str, ...]:
    """Names of columns as texts; a text or a number is one name."""
    if columns is None:
        return ()
    return tuple(map(str, columns if isinstance(columns, Iterable) and not isinstance(columns, str) else (columns,)))


def _kind(task: Task | str) -> str:
    """The kind of a task, as a schema declares it; that of the class it derives from, if it is the user's own."""
    if isinstance(task, Task):
        known = [kind for kind in (getattr(one, "kind", None) for one in type(task).__mro__) if kind in KINDS]
        if not known:
            raise PluresError(
                f"task {task.kind!r} of your own: a schema names no such target; derive it from one of "
                f"{', '.join(kind.__name__ for kind in KINDS.values())}, or give its targets to from_arrays"
            )
        return str(known[0])
    if task not in KINDS:
        raise PluresError(f"task={task!r}: {suggestion(task, KINDS, 'a schema can name')}")
    return task


def _orders(parts: Sequence[Part]) -> dict[str, list[str]]:
    """Columns that a frame declares to be ordered, with their levels."""
    found = {}
    for name, dtype in _types(parts[0]).items():
        levels = getattr(dtype, "categories", None)
        if levels is not None and getattr(dtype, "ordered", type(dtype).__name__ == "Enum"):
            found[name] = [text(level) for level in levels]
    return found


def _codes(parts: Sequence[Part]) -> list[str]:
    """Columns that a frame declares to be categories."""
    ordered = _orders(parts)
    kinds = ("CategoricalDtype", "Categorical")
    return [name for name, dtype in _types(parts[0]).items() if type(dtype).__name__ in kinds and name not in ordered]


def _types(part: Part) -> dict[str, Any]:
    """Column -> its type in the frame."""
    if part.frame is None or isinstance(part.frame, Mapping):
        return {}
    return {str(name): getattr(part.frame[name], "dtype", None) for name in part.frame.columns}
