"""What every site's table must look like, and the inputs derived from it without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError, closest, suggestion
from plures.faults import explain
from plures.federation import SPLITS, Federation, Split, SplitName, SplitRule
from plures.federation.build import Options, assemble, keys_of_texts, of_arrays, train_rows
from plures.federation.inputs import Inputs
from plures.federation.preparation import Preparation
from plures.federation.scaling import Scaling
from plures.federation.subgroups import parsed
from plures.names import by_name, in_order
from plures.tables.column import AnyColumn, Boolean, Category, Date, Number, Ordered, Read
from plures.tables.declared import Declared, Finite, Name, Names, toml
from plures.tables.draft import Draft, draft
from plures.tables.finding import Finding, FoundError, refuse
from plures.tables.marks import Dates, read_dates, read_groups
from plures.tables.table import Cells, Table, absent, columns, each, lines_of, presence, read_table, text, write_table
from plures.tasks import KINDS, Classification, MultiLabel, Regression, Task

__all__ = [
    "Boolean",
    "Category",
    "Date",
    "Metadata",
    "Number",
    "Ordered",
    "Reading",
    "Schema",
    "Splits",
    "Table",
    "read_table",
    "write_table",
]

Metadata = Mapping[str, Mapping[str, object]]
"""Client -> its metadata."""


PRESENCE = ("0", "1")
"""Values of a label's column: absent or present."""
ALL_MISSING = 1.0
"""Share of missing values that allows a site to lack the column."""
ORDER = ("unit", "low", "high", "zero_is_missing", "marks", "format", "levels", "other", "center", "scale", "missing")
"""Order of a column's fields in a file."""
WORDS: Mapping[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words of a column of splits."""


def _known(task: str) -> str:
    """A kind of task, if there is one of the name."""
    if task not in KINDS:
        raise ValueError(f"there is no task {task!r}; {suggestion(task, KINDS, 'tasks are')}")
    return task


def _listed(target: Any) -> Any:
    """A single name stands for a list of one."""
    return (target,) if isinstance(target, str) else target


class Splits(Declared):
    """How every client divides its rows; see :class:`~plures.federation.SplitRule`.

    Attributes:
        seed: seed of the split.
        validation: share for validation.
        test: share for test; train gets the rest.
        by: ``random``; ``time`` by the column ``time`` or, without it, ``date``; or ``column``.
        column: with ``by = "column"``, the column that says ``train``, ``validation`` or ``test`` in each row. If no
            row is for validation, the declared share of each client's train rows is, drawn at random.
        fold: the column holds numbers or names of folds instead, and this one is for test.
    """

    seed: int = 0
    validation: float = SplitRule.validation
    test: float = SplitRule.test
    by: Literal["random", "time", "column"] = SplitRule.by
    column: Name | None = None
    fold: Name | None = None

    @model_validator(mode="after")
    def _possible(self) -> Splits:
        _ = self.rule  # refuses what is impossible
        if (self.by == "column") != (self.column is not None):
            raise ValueError("by = 'column' and column, its name, go together")
        if self.fold is not None and self.column is None:
            raise ValueError("fold needs the column of folds; declare column")
        return self

    @property
    def rule(self) -> SplitRule:
        """The equivalent :class:`~plures.federation.SplitRule`."""
        return SplitRule(self.validation, self.test, "time" if self.by == "time" else "random")

    @property
    def least(self) -> int:
        """Fewest rows of a client such that no split is empty; 1 if a column says what is in each."""
        return 1 if self.by == "column" else 1 + (self.validation > 0) + (self.test > 0)


@brief
@by_content
@dataclass(frozen=True)
class Reading:
    """A parsed table.

    Attributes:
        rows: number of rows.
        columns: every declared input column that is present.
        targets: of every target column that is present: class numbers or values; none if they were not requested.
        dates: ``(n,)`` ``datetime64[us]``, NaT if missing; None without such a column.
        times: ``(n,)`` numbers that order the rows; None without such a column.
        groups: ``(n,)`` texts; None without such a column.
        weights: ``(n,)`` numbers; None without such a column.
        keys: ``(n,)`` texts; None without such a column.
        splits: ``(n,)`` the split of each row, as its position in ``SPLITS``; None without such a column.
        extra: undeclared columns.
        findings: what is wrong.
    """

    rows: int
    columns: Mapping[str, Read]
    targets: Mapping[str, Read]
    dates: Dates | None
    groups: NDArray[np.str_] | None
    weights: NDArray[np.float64] | None
    extra: tuple[str, ...]
    findings: tuple[Finding, ...]
    keys: NDArray[np.str_] | None = None
    splits: NDArray[np.int64] | None = None
    times: NDArray[np.float64] | None = None

    @property
    def order(self) -> NDArray[np.float64] | Dates | None:
        """What orders the rows for splits by time."""
        return self.dates if self.times is None else self.times


class Schema(Declared):
    """A declaration of the rows, the target and the inputs, the same for every site.

    The inputs follow from it alone: a number column becomes ``(value - center) / scale``, a category column one 0/1
    input for each level, and a column that may have missing values gets one more, ``"<name> is missing"``; a missing
    number is filled by ``center``. So all sites have the same inputs in the same order, whatever their data, and
    no statistics of the data travel. A simulation makes its inputs with the same code: what is fitted to a table
    (:meth:`fit`) is a schema, too.

    Attributes:
        task: the kind of task: ``classification``, ``multilabel`` (any number of several labels at once),
            ``regression`` or another one of ``plures.tasks.KINDS``.
        target: column to predict; several for labels, each 0 or 1 in a column of its own, and for a regression with
            several numbers.
        classes: names of the classes in order; for classification only.
        target_center: what is subtracted from each target of a regression; nothing if not given. Losses and errors are
            on the scale of training, predictions for new rows in the target's own units.
        target_scale: what each is then divided by.
        client: column with the client of each row, in a table of several clients; a site does not need it. It is no
            input.
        date: column of dates, for the time span of the data and for splits by time; not an input.
        date_format: how they are written, such as ``%d.%m.%Y``; the ISO format if not given.
        time: column of numbers, such as cycles or years, that orders the rows for splits by time; not an input.
        group: column whose equal values stay in one split, such as a patient; not an input.
        weight: column of numbers of at least 0 that says how much each row counts in losses and metrics, relative to
            the others of its site; not an input. A row of weight 0 is left out.
        key: column that is different in all rows of a client, such as a case number: a row then stays in its split
            whatever else changes. Not an input.
        ignored: further columns of the table, and why they are no inputs.
        splits: how each client divides its rows.
        columns: the inputs.
        arguments: for a network with several inputs: each of its arguments, and the columns that it reads; every column
            belongs to one.
    """

    task: Annotated[str, AfterValidator(_known)] = "classification"
    target: Annotated[Names, BeforeValidator(_listed), Field(min_length=1)]
    classes: Names = ()
    target_center: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    target_scale: Annotated[tuple[Annotated[Finite, Field(gt=0)], ...], Field(strict=False)] = ()
    client: Name | None = None
    date: Name | None = None
    date_format: str | None = None
    time: Name | None = None
    group: Name | None = None
    weight: Name | None = None
    key: Name | None = None
    ignored: dict[Name, str] = Field(default_factory=dict)
    splits: Splits = Splits()
    columns: Annotated[tuple[Annotated[AnyColumn, Field(discriminator="kind")], ...], Field(strict=False, min_length=1)]
    arguments: dict[Name, Names] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        if self.task == "classification" and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError("classes: a classification needs two or more different names")
        if self.task != "classification" and self.classes:
            raise ValueError(f"classes: a {self.task} has none; leave them out")
        if self.classes and len(self.target) > 1:
            raise ValueError(
                "target: a classification has one column; for any number of labels at once, a column of 0 and 1 each, "
                'give task = "multilabel"'
            )
        if self.target_center or self.target_scale:
            if not self._scalable:
                raise ValueError(f"target_center, target_scale: a {self.task} has none; leave them out")
            if not len(self.target) == len(self.target_center) == len(self.target_scale):
                raise ValueError("target_center, target_scale: give both, one number for each target")
        names = [*self._roles, *(column.name for column in self.columns), *self.ignored]
        for what, given in (("column", names), ("input", list(self.inputs))):
            twice = [name for place, name in enumerate(given) if name in given[:place]]
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is declared twice; rename or remove one")
        if self.date_format is not None and self.date is None:
            raise ValueError("date_format: there is no column of dates; declare date")
        if self.splits.by == "time" and self.date is None and self.time is None:
            raise ValueError("splits: by = 'time' needs a column of dates or numbers; declare date or time")
        self._read_once()
        return self

    def _read_once(self) -> None:
        """Refuse arguments that do not read every column once."""
        if not self.arguments:
            return
        for argument in self.arguments:
            if not argument.isidentifier():
                raise ValueError(f"arguments: {argument!r} cannot be an argument of a network; give it such a name")
        read = [name for names in self.arguments.values() for name in names]
        for name in read:
            if name not in self.names:
                raise ValueError(
                    f"arguments: there is no column {name!r}; {suggestion(name, self.names, 'columns are')}"
                )
        for name in self.names:
            if read.count(name) != 1:
                raise ValueError(f"arguments: column {name!r} is read {read.count(name)} times; name it in one of them")

    @classmethod
    def parse(cls, declared: Mapping[str, object], source: str = "[schema]") -> Schema:
        """A schema from the ``[schema]`` table of a TOML file.

        Args:
            declared: the parsed table.
            source: its location, for messages.

        Raises:
            PluresError: names the column and the field at fault.
        """
        try:
            return cls.model_validate(declared)
        except ValidationError as error:
            raise PluresError(f"{source}: {explain(error, declared)}; correct the declaration") from error

    @classmethod
    def of(
        cls, table: Table, target: str | Sequence[str], client: str | None = None, **options: Unpack[Draft]
    ) -> Schema:
        """A draft of a schema from pooled or public data, to be read and corrected by the coordinator.

        What the cells hold decides between numbers, dates, categories (levels are the values that occur), booleans (two
        words such as no and yes) and ordered levels (words such as low, medium and high, or bands such as 40-49).
        Constants, identifiers, free text and columns that name the client are left out, each with its reason. The
        center is the mean and the scale the standard deviation; ranges are those of the data plus a margin. The allowed
        share of missing values is that of the client with the most. All are rounded.

        Args:
            table: column -> values, or a frame.
            target: column to predict, or several.
            client: column with the client of each row; not an input. Without it all rows belong to one client.
            options: see :class:`~plures.tables.draft.Draft`.

        Raises:
            PluresError: names the column.
        """
        try:
            drafted = draft(columns(table), _listed(target), client, options)
        except FoundError as error:
            raise FoundError(error.finding.at(lines_of(table))) from error
        return cls.parse(drafted, "the draft of a schema")

    @property
    def _scalable(self) -> bool:
        """Whether targets may be learned on another scale."""
        return not self.task_of.probable and self.task_of.scalable

    @property
    def _roles(self) -> list[str]:
        """Columns that are not inputs."""
        marks = (self.date, self.time, self.group, self.weight, self.key, self.splits.column)
        return [name for name in (*self.target, *marks) if name is not None]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(name for column in self.columns for name in column.inputs)

    @property
    def task_of(self) -> Task:
        """What a model of this schema predicts."""
        if self.classes:
            return Classification(self.classes)
        if self.task == "multilabel":
            return MultiLabel(self.target)
        return Regression(len(self.target)) if self.task == "regression" else KINDS[self.task]()

    @property
    def scaling(self) -> Scaling:
        """Center and scale of every input, ``(inputs,)`` float64 each; by argument, if there are several."""
        pairs = [pair for column in self.columns for pair in column.scaling]
        center, scale = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
        if not self.arguments:
            return center, scale
        return {name: (center[places], scale[places]) for name, places in self._places.items()}

    @property
    def _places(self) -> dict[str, list[int]]:
        """The positions of each argument's inputs."""
        ends = np.cumsum([0, *(len(column.inputs) for column in self.columns)]).tolist()
        of = {column.name: range(*ends[place : place + 2]) for place, column in enumerate(self.columns)}
        return {argument: [at for name in names for at in of[name]] for argument, names in self.arguments.items()}

    def _apart(self, inputs: Tensor) -> Tensor | Inputs:
        """Inputs ``(n, inputs)``, by argument if there are several."""
        if not self.arguments:
            return inputs
        return Inputs({name: inputs[:, places] for name, places in self._places.items()})

    @property
    def answers(self) -> tuple[Number | Category, ...]:
        """The targets as columns."""
        if not self.task_of.probable:
            return tuple(Number(name=name) for name in self.target)
        return tuple(Category(name=name, levels=self.classes or PRESENCE) for name in self.target)

    def read(self, table: Table, *, site: bool = True) -> Reading:
        """Read a table and report everything that is wrong with it.

        Args:
            table: column -> values, or a frame.
            site: the table is a site's data: target, date and group are read and shares of missing values are
                checked. Otherwise only inputs are read, and any value of a column that allows gaps may be missing.

        Raises:
            PluresError: if it is not a table.
        """
        there = columns(table)
        roles, rows = self._roles, len(next(iter(there.values()), ()))
        wanted = [*(column.name for column in self.columns), *(roles if site else ())]
        known = (*wanted, *roles, *self.ignored, self.client)
        extra = tuple(name for name in there if name not in known)
        optional = [column.name for column in self.columns if column.missing >= ALL_MISSING]
        found = []
        for name in wanted:
            if name not in there and (name not in optional or closest(name, extra) is not None):
                found.append(_not_there(name, extra))
            elif name not in there:
                there[name] = [None] * rows
        if not rows:
            found.append(Finding("error", "", "the table has no rows", "give at least one"))
        reads = {
            column.name: column.read(there[column.name], None if site else float(column.missing > 0))
            for column in self.columns
            if column.name in there
        }
        answers = [answer for answer in self.answers if site and answer.name in there]
        targets = {answer.name: _answered(answer, there[answer.name], self.classes) for answer in answers}
        for read in (*reads.values(), *targets.values()):
            found += read.findings
        dates, groups, weights = None, None, None
        if site and self.date is not None and self.date in there:
            dates, wrong = read_dates(
                self.date, there[self.date], self.date_format, needed=self.splits.by == "time" and self.time is None
            )
            found += wrong
        times = None
        if site and self.time is not None and self.time in there:
            order = Number(name=self.time).read(there[self.time])
            times, found = order.values, [*found, *order.findings]
        if site and self.group is not None and self.group in there:
            groups, wrong = read_groups(self.group, there[self.group])
            found += wrong
        if site and self.weight is not None and self.weight in there:
            given = Number(name=self.weight, low=0.0).read(there[self.weight])
            weights, found = given.values, [*found, *given.findings]
            if rows and not given.findings and not weights.any():
                found.append(Finding("error", self.weight, "is 0 in all rows, so none counts", "correct it"))
        keys, splits = None, None
        if site and self.key is not None and self.key in there:
            keys, wrong = read_groups(self.key, there[self.key], "identifies the rows")
            found += wrong
        if site and self.splits.column is not None and self.splits.column in there:
            splits, wrong = _divided(self.splits.column, there[self.splits.column], self.splits.fold)
            found += wrong
        if site and 0 < rows < self.splits.least:
            what = f"{rows} row{'s' if rows > 1 else ''}, too few for {self.splits.least} splits"
            found.append(Finding("error", "", what, f"give at least {self.splits.least}"))
        located = tuple(finding.at(lines_of(table)) for finding in found)
        return Reading(rows, reads, targets, dates, groups, weights, extra, located, keys, splits, times)

    def encode(self, table: Table, *, scaled: bool = True) -> Tensor | Inputs:
        """Inputs of raw rows ``(n, inputs)`` float32, for predictions; the target may be absent.

        With several arguments, one such tensor for each, by name.

        Args:
            table: column -> values, or a frame; columns that are not declared are ignored.
            scaled: subtract centers and divide by scales; otherwise numbers stay in their units.

        Raises:
            PluresError: names the column, the row (from 1) and what is wrong.
        """
        reading = self.read(table, site=False)
        refuse(reading.findings)
        return self._apart(torch.from_numpy(self._encoded(reading.columns, scaled)))

    def empty(self, name: str, clients: Sequence[str], metadata: Metadata | None = None) -> Federation:
        """The federation as the coordinator knows it: clients and inputs, without rows.

        Args:
            name: name of the federation.
            clients: their names.
            metadata: metadata of the clients, for all or none.
        """
        nothing = torch.empty(0, dtype=torch.int64)
        return Federation(
            name=name,
            task=self.task_of,
            inputs=self._apart(torch.empty(0, len(self.inputs))),
            targets=self.task_of.blank(),
            clients=in_order(clients),
            splits={split: Split.of([nothing] * len(clients)) for split in SPLITS},
            metadata=_metadata(metadata, clients),
            columns=() if self.arguments else self.inputs,
            scaling=self.scaling,
            preparation=self.preparation,
        )

    def federation(
        self,
        name: str,
        tables: Mapping[str, Table],
        metadata: Metadata | None = None,
        *,
        copies: Literal["allow", "warn"] = "allow",
        source: str = "",
        subgroups: Sequence[str] = (),
    ) -> Federation:
        """The federation of one site, or of several for a simulation: a client's rows are bit-identical in both.

        Missing values are counted by the inputs ``"<name> is missing"``, not in the metadata, so that a method that
        reads metadata sees the same here and at the sites.

        Args:
            name: name of the federation.
            tables: client -> its table.
            metadata: metadata of the clients, for all or none.
            copies: ``warn`` about validation and test rows that are copies of train rows, or ``allow`` them, for a
                site's check names them.
            source: origin and licence, for reports.
            subgroups: columns by which results are reported, too; see
                :meth:`~plures.federation.Federation.with_subgroups`.

        Raises:
            PluresError: names the client, the column and the rows at fault.
        """
        groups = _subgroups(tables, subgroups)
        return self._assembled(name, self._accepted(name, tables), metadata, copies, source, groups)

    def fit(
        self,
        name: str,
        tables: Mapping[str, Table],
        metadata: Metadata | None = None,
        *,
        copies: Literal["allow", "warn"] = "allow",
        source: str = "",
        subgroups: Sequence[str] = (),
    ) -> Federation:
        """A simulated federation by this schema with what its train rows determine; it carries the fitted schema.

        Fitted are the center and the scale of numbers, dates and targets (mean and standard deviation), and the levels
        of categories (those that occur, where others are allowed). A column without a value in any train row is left
        out. No other row is looked at, and the splits are those of :meth:`federation`, whose arguments these are.

        Raises:
            PluresError: names the client, the column and the rows at fault.
        """
        groups = _subgroups(tables, subgroups)
        return self._assembled(name, self._accepted(name, tables), metadata, copies, source, groups, fit=True)

    def _accepted(self, name: str, tables: Mapping[str, Table]) -> dict[str, Reading]:
        """The clients' tables, read."""
        if not tables:
            raise PluresError(f"federation {name!r} has no tables: give one for each client")
        tables = by_name(tables)
        return {client: self.accepted(client, tables[client]) for client in in_order(tables)}

    def _assembled(
        self,
        name: str,
        readings: Mapping[str, Reading],
        metadata: Metadata | None,
        copies: Literal["allow", "warn"],
        source: str,
        subgroups: Mapping[str, NDArray[Any]],
        fit: bool = False,
    ) -> Federation:
        clients, parts = tuple(readings), tuple(readings.values())
        targets = np.concatenate(
            [np.column_stack([read.values for read in reading.targets.values()]) for reading in parts]
        )
        rows = of_arrays(
            np.empty((len(targets), 0), dtype=np.float32),
            np.array(self.classes)[targets[:, 0].astype(np.int64)] if self.classes else targets,
            np.repeat(np.array(clients), [reading.rows for reading in parts]),
            _joined([reading.groups for reading in parts]),
            _joined([reading.order for reading in parts]) if self.splits.by == "time" else None,
            _joined([reading.keys for reading in parts]),
            _joined([reading.weights for reading in parts]),
            (),
        )
        identified = None if self.key is not None else keys_of_texts(row for part in parts for row in _content(part))
        given = _joined([reading.splits for reading in parts])
        rows = replace(rows, keys=identified, given=given, subgroups=subgroups)
        options: Options = {
            "name": name,
            "task": self.task_of,
            "metadata": _metadata(metadata, clients),
            "split": self.splits.rule,
            "seed": 0 if self.splits.by == "time" else self.splits.seed,
            "copies": copies,
            "source": source,
        }
        columns = _columns(parts)
        schema = self if not fit else self._fitted(columns, targets, train_rows(rows, options, "the schema"))
        encoded = schema._encoded(schema._from(self, columns))
        several: dict[str, Any] = {name: encoded[:, places] for name, places in schema._places.items()}
        named = () if several else schema.inputs
        federation = assemble(replace(rows, inputs=several or encoded, columns=named), options, "the schema")
        made = schema.preparation
        return replace(
            federation,
            targets=made.scaled_targets(federation.targets),
            scaling=schema.scaling,
            preparation=made,
        )

    def _fitted(self, columns: Mapping[str, Read], targets: NDArray[np.float64], train: NDArray[np.int64]) -> Schema:
        """The schema with what the train rows determine."""
        rows = np.sort(train)
        found = {column.name: column.fitted(columns[column.name], rows) for column in self.columns}
        lost = {name: "no train row has a value" for name, column in found.items() if column is None}
        kept = tuple(column for column in found.values() if column is not None)
        if not kept:
            raise PluresError("no column has a value in the train rows: there is nothing to learn from")
        answers = dict[str, tuple[float, ...]]()
        if self._scalable:
            reads = [Read(values, np.isnan(values), ()) for values in targets.T]
            pairs = zip(self.target, reads, strict=True)
            moments = [Number(name=name).fitted(read, rows) for name, read in pairs]
            answers = {
                "target_center": tuple(one.center for one in moments if one is not None),
                "target_scale": tuple(one.scale for one in moments if one is not None),
            }
        arguments = {name: tuple(one for one in read if one not in lost) for name, read in self.arguments.items()}
        if empty := [name for name, read in arguments.items() if not read]:
            raise PluresError(f"argument {empty[0]!r} of the network: no column of it has a value in the train rows")
        told = {"columns": kept, "ignored": {**self.ignored, **lost}, "arguments": arguments}
        return self.model_copy(update={**told, **answers})

    @property
    def preparation(self) -> Preparation:
        """How a model of this schema reads raw rows, and the units of its targets."""
        target = None
        if self.target_center:
            target = (torch.tensor(self.target_center).double(), torch.tensor(self.target_scale).double())
        return Preparation(schema=self, target=target)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that the inputs are made from."""
        return tuple(column.name for column in self.columns)

    @property
    def gaps(self) -> tuple[int, ...]:
        """Positions of the inputs that say that a value is missing."""
        ends = np.cumsum([len(column.inputs) for column in self.columns])
        return tuple(int(end) - 1 for end, column in zip(ends, self.columns, strict=True) if column.missing)

    def to_toml(self) -> str:
        """The ``[schema]`` table of a TOML file; reading it back gives an equal schema."""
        one = self.target[0] if len(self.target) == 1 else self.target
        fields = {"task": self.task, **self.given(), "target": one}
        apart = ("columns", "splits", "ignored", "arguments")
        lines = ["[schema]", *(f"{key} = {toml(fields[key])}" for key in fields if key not in apart)]
        lines += ["columns = ["]
        for column in self.columns:
            given = column.given()
            entries = {"name": column.name, "kind": column.kind, **{key: given[key] for key in ORDER if key in given}}
            lines.append(f"    {{ {', '.join(f'{key} = {toml(value)}' for key, value in entries.items())} }},")
        said = [f"{key} = {toml(value)}" for key, value in self.splits if value is not None]
        lines += ["]", "", "[schema.splits]", *said]
        if self.arguments:
            lines += ["", "[schema.arguments]", *(f"{name} = {toml(read)}" for name, read in self.arguments.items())]
        if self.ignored:
            lines += ["", "[schema.ignored]", *(f"{toml(name)} = {toml(why)}" for name, why in self.ignored.items())]
        return "\n".join(lines) + "\n"

    def accepted(self, client: str, table: Table) -> Reading:
        """A client's table, read.

        Raises:
            PluresError: names the client, the column and the rows at fault.
        """
        try:
            reading = self.read(table)
        except PluresError as error:
            raise PluresError(f"client {client!r}: {error}") from error
        refuse([replace(finding, client=client) for finding in reading.findings])
        return reading

    def _encoded(self, columns: Mapping[str, Read], scaled: bool = True) -> NDArray[np.float32]:
        """Inputs of columns that were read, ``(n, inputs)``."""
        parts = [column.encode(columns[column.name], scaled) for column in self.columns]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _from(self, drafted: Schema, columns: Mapping[str, Read]) -> dict[str, Read]:
        """Columns that were read by the schema that this one was fitted from."""
        levels = {column.name: column.levels for column in drafted.columns if isinstance(column, Category)}
        own = {column.name: column for column in self.columns if isinstance(column, Category)}
        return {name: own[name].moved(read, levels[name]) if name in own else read for name, read in columns.items()}


def _columns(parts: Sequence[Reading]) -> dict[str, Read]:
    """The columns of several tables, the rows of one after those of the other; without their texts."""
    return {
        name: Read(
            np.concatenate([part.columns[name].values for part in parts]),
            np.concatenate([part.columns[name].missing for part in parts]),
            (),
        )
        for name in parts[0].columns
    }


def _joined(parts: Sequence[NDArray[Any] | None]) -> Any:
    """The values of all clients; None if they have none."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def _subgroups(tables: Mapping[str, Table], texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of subgroups (with the edges of stated bands) -> their cells, of one client after the other."""
    named = by_name(tables) if texts else {}
    there = {client: columns(named[client]) for client in in_order(named)}
    found = {}
    for asked, column in ((one, parsed(one)[0]) for one in texts):
        cells: list[object] = []
        for client, table in there.items():
            if column not in table:
                near = suggestion(column, [*table], "its columns are")
                raise PluresError(f"client {client!r}: subgroups: no column {column!r} in the table; {near}")
            own = table[column]
            cells += own.tolist() if isinstance(own, np.ndarray) else own
        found[asked] = np.array(cells, dtype=object)
    return found


def _content(reading: Reading) -> list[str]:
    """What identifies each row: its cells, whatever is fitted to them."""
    cells = [read.content for read in reading.columns.values()]
    return ["\x1f".join(row) for row in zip(*cells, strict=True)]


def _divided(name: str, cells: Cells, fold: str | None) -> tuple[NDArray[np.int64], list[Finding]]:
    """The split that a column says of each row, as its position in ``SPLITS``."""
    texts = ["" if absent(cell) else text(cell) for cell in cells]
    if fold is not None:
        found = np.array([2 if word == text(fold) else 0 for word in texts], dtype=np.int64)
        wrong = np.array([not word for word in texts], dtype=bool)
        what, remedy = "the fold is missing", "complete it"
    else:
        known = [WORDS.get(word.casefold()) for word in texts]
        found = np.array([0 if split is None else SPLITS.index(split) for split in known], dtype=np.int64)
        wrong = np.array([split is None for split in known], dtype=bool)
        first = texts[int(wrong.argmax())] if len(texts) else ""
        what, remedy = f"{first!r} is no split", "write train, validation or test; for numbered folds, say which tests"
    rows = tuple((np.flatnonzero(wrong) + 1).tolist())
    return found, [Finding("error", name, what, remedy, rows)] if rows else []


def _answered(answer: Number | Category, cells: Cells, classes: Sequence[str]) -> Read:
    if isinstance(answer, Number):
        return answer.read(cells)
    if not classes:
        cells = each(cells, presence)
    return answer.read(cells, noun="classes" if classes else "values of a label,")


def _not_there(name: str, extra: Sequence[str]) -> Finding:
    near = closest(name, extra)
    remedy = f"there is {near!r}: is that it? Rename it" if near else "add it to the table"
    return Finding("error", name, "is not in the table", remedy)


def _metadata(metadata: Metadata | None, clients: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Column -> one value per client, in the order of their names."""
    if not metadata:
        return {}
    names, metadata = in_order(clients), by_name(metadata)
    for name in names:
        if name not in metadata:
            raise PluresError(f"metadata: none for client {name!r}; give it, or none at all")
    keys = dict.fromkeys(key for name in names for key in metadata[name])
    return {key: tuple(metadata[name].get(key) for name in names) for key in keys}
