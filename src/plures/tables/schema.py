"""What every site's table must look like, and the inputs derived from it without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError, closest
from plures.faults import explain
from plures.federation import SPLITS, Federation, Split, SplitRule, from_arrays
from plures.names import by_name, in_order
from plures.tables.column import Category, Number, Read
from plures.tables.declared import Declared, Name, Names, toml
from plures.tables.draft import Draft, draft
from plures.tables.finding import Finding, refuse
from plures.tables.marks import Dates, read_dates, read_groups
from plures.tables.table import Cells, Table, columns, read_table, write_table
from plures.tasks import Classification, MultiLabel, Regression, Task

__all__ = ["Category", "Metadata", "Number", "Reading", "Schema", "Splits", "Table", "read_table", "write_table"]

Metadata = Mapping[str, Mapping[str, object]]
"""Client -> its metadata."""


PRESENCE = ("0", "1")
"""Values of a label's column: absent or present."""


def _listed(target: Any) -> Any:
    """A single name stands for a list of one."""
    return (target,) if isinstance(target, str) else target


class Splits(Declared):
    """How every client divides its rows; see :class:`~plures.federation.SplitRule`.

    Attributes:
        seed: seed of the split.
        validation: share for validation.
        test: share for test; train gets the rest.
        by: ``random``, or ``time`` by the column ``date``.
    """

    seed: int = 0
    validation: float = SplitRule.validation
    test: float = SplitRule.test
    by: Literal["random", "time"] = SplitRule.by

    @model_validator(mode="after")
    def _possible(self) -> Splits:
        SplitRule(self.validation, self.test, self.by)  # refuses what is impossible
        return self

    @property
    def rule(self) -> SplitRule:
        """The equivalent :class:`~plures.federation.SplitRule`."""
        return SplitRule(self.validation, self.test, self.by)

    @property
    def least(self) -> int:
        """Fewest rows of a client such that no split is empty."""
        return 1 + (self.validation > 0) + (self.test > 0)


@brief
@dataclass(frozen=True)
class Reading:
    """A parsed table.

    Attributes:
        rows: number of rows.
        columns: every declared input column that is present.
        targets: of every target column that is present: class numbers or values; none if they were not requested.
        dates: ``(n,)`` ``datetime64[us]``, NaT if missing; None without such a column.
        groups: ``(n,)`` texts; None without such a column.
        weights: ``(n,)`` numbers; None without such a column.
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


class Schema(Declared):
    """A declaration of the rows, the target and the inputs, the same for every site.

    The inputs follow from it alone: a number column becomes ``(value - center) / scale``, a category column one 0/1
    input for each level, and a column that may have missing values gets one more, ``"<name> is missing"``; a missing
    number is filled by ``center``. So all sites have the same inputs in the same order, whatever their data, and
    no statistics of the data travel.

    Attributes:
        task: ``classification``, ``multilabel`` (any number of several labels at once) or ``regression`` (targets are
            predicted unscaled).
        target: column to predict; several for labels, each 0 or 1 in a column of its own, and for a regression with
            several numbers.
        classes: names of the classes in order; for classification only.
        date: column of dates in ISO format, for the time span of the data; not an input.
        group: column whose equal values stay in one split, such as a patient; not an input.
        weight: column of numbers of at least 0 that says how much each row counts in losses and metrics, relative to
            the others of its site; not an input. A row of weight 0 is left out.
        splits: how each client divides its rows.
        columns: the inputs.
    """

    task: Literal["classification", "multilabel", "regression"] = "classification"
    target: Annotated[Names, BeforeValidator(_listed), Field(min_length=1)]
    classes: Names = ()
    date: Name | None = None
    group: Name | None = None
    weight: Name | None = None
    splits: Splits = Splits()
    columns: Annotated[
        tuple[Annotated[Number | Category, Field(discriminator="kind")], ...], Field(strict=False, min_length=1)
    ]

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
        roles = self._roles
        names = [*roles, *(column.name for column in self.columns)]
        for what, given in (("column", names), ("input", list(self.inputs))):
            twice = [name for place, name in enumerate(given) if name in given[:place]]
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is declared twice; rename or remove one")
        if self.splits.by == "time" and self.date is None:
            raise ValueError("splits: by = 'time' needs the column of dates; declare date")
        return self

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

        A column whose values are all numbers is a number, any other a category; levels are the values that occur. The
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
        return cls.parse(draft(columns(table), _listed(target), client, options), "the draft of a schema")

    @property
    def _roles(self) -> list[str]:
        """Columns that are not inputs."""
        return [name for name in (*self.target, self.date, self.group, self.weight) if name is not None]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(name for column in self.columns for name in column.inputs)

    @property
    def task_of(self) -> Task:
        """What a model of this schema predicts."""
        if self.classes:
            return Classification(self.classes)
        return MultiLabel(self.target) if self.task == "multilabel" else Regression(len(self.target))

    @property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """Center and scale of every input, ``(inputs,)`` float64 each."""
        pairs = [pair for column in self.columns for pair in column.scaling]
        center, scale = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        return center.contiguous(), scale.contiguous()

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
        roles = self._roles
        wanted = [*(column.name for column in self.columns), *(roles if site else ())]
        extra = tuple(name for name in there if name not in wanted and name not in roles)
        found = [_not_there(name, extra) for name in wanted if name not in there]
        rows = len(next(iter(there.values()), ()))
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
            dates, wrong = read_dates(self.date, there[self.date], needed=self.splits.by == "time")
            found += wrong
        if site and self.group is not None and self.group in there:
            groups, wrong = read_groups(self.group, there[self.group])
            found += wrong
        if site and self.weight is not None and self.weight in there:
            given = Number(name=self.weight, low=0.0).read(there[self.weight])
            weights, found = given.values, [*found, *given.findings]
            if rows and not given.findings and not weights.any():
                found.append(Finding("error", self.weight, "is 0 in all rows, so none counts", "correct it"))
        if site and 0 < rows < self.splits.least:
            what = f"{rows} row{'s' if rows > 1 else ''}, too few for {self.splits.least} splits"
            found.append(Finding("error", "", what, f"give at least {self.splits.least}"))
        return Reading(rows, reads, targets, dates, groups, weights, extra, tuple(found))

    def encode(self, table: Table, *, scaled: bool = True) -> Tensor:
        """Inputs of raw rows ``(n, inputs)`` float32, for predictions; the target may be absent.

        Args:
            table: column -> values, or a frame; columns that are not declared are ignored.
            scaled: subtract centers and divide by scales; otherwise numbers stay in their units.

        Raises:
            PluresError: names the column, the row (from 1) and what is wrong.
        """
        reading = self.read(table, site=False)
        refuse(reading.findings)
        return self._encoded(reading, scaled)

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
            inputs=torch.empty(0, len(self.inputs)),
            targets=self.task_of.blank(),
            clients=in_order(clients),
            splits={split: Split.of([nothing] * len(clients)) for split in SPLITS},
            metadata=_metadata(metadata, clients),
            columns=self.inputs,
            scaling=self.scaling,
        )

    def federation(self, name: str, tables: Mapping[str, Table], metadata: Metadata | None = None) -> Federation:
        """The federation of one site, or of several for a simulation: a client's rows are bit-identical in both.

        Missing values are counted by the inputs ``"<name> is missing"``, not in the metadata, so that a method that
        reads metadata sees the same here and at the sites.

        Args:
            name: name of the federation.
            tables: client -> its table.
            metadata: metadata of the clients, for all or none.

        Raises:
            PluresError: names the client, the column and the rows at fault.
        """
        if not tables:
            raise PluresError(f"federation {name!r} has no tables: give one for each client")
        tables = by_name(tables)
        clients = in_order(tables)
        readings = [self._accepted(client, tables[client]) for client in clients]
        targets = np.concatenate(
            [np.column_stack([read.values for read in reading.targets.values()]) for reading in readings]
        )
        groups = [reading.groups for reading in readings if reading.groups is not None]
        dates = [reading.dates for reading in readings if reading.dates is not None]
        weights = [reading.weights for reading in readings if reading.weights is not None]
        federation = from_arrays(
            torch.cat([self._encoded(reading) for reading in readings]),
            np.array(self.classes)[targets[:, 0].astype(np.int64)] if self.classes else targets,
            np.repeat(np.array(clients), [reading.rows for reading in readings]),
            groups=np.concatenate(groups) if groups else None,
            time=np.concatenate(dates) if self.splits.by == "time" else None,
            weights=np.concatenate(weights) if weights else None,
            columns=self.inputs,
            name=name,
            task=self.task_of,
            metadata=_metadata(metadata, clients),
            split=self.splits.rule,
            seed=0 if self.splits.by == "time" else self.splits.seed,
            copies="allow",  # a site's check names duplicate rows
        )
        return replace(federation, scaling=self.scaling)

    def to_toml(self) -> str:
        """The ``[schema]`` table of a TOML file; reading it back gives an equal schema."""
        one = self.target[0] if len(self.target) == 1 else self.target
        fields = {"task": self.task, **self.given(), "target": one}
        lines = ["[schema]", *(f"{key} = {toml(fields[key])}" for key in fields if key not in ("columns", "splits"))]
        lines += ["columns = ["]
        for column in self.columns:
            entries = {"name": column.name, "kind": column.kind, **column.given()}
            lines.append(f"    {{ {', '.join(f'{key} = {toml(value)}' for key, value in entries.items())} }},")
        lines += ["]", "", "[schema.splits]", *(f"{key} = {toml(value)}" for key, value in self.splits)]
        return "\n".join(lines) + "\n"

    def _accepted(self, client: str, table: Table) -> Reading:
        try:
            reading = self.read(table)
        except PluresError as error:
            raise PluresError(f"client {client!r}: {error}") from error
        refuse([replace(finding, client=client) for finding in reading.findings])
        return reading

    def _encoded(self, reading: Reading, scaled: bool = True) -> Tensor:
        parts = [column.encode(reading.columns[column.name], scaled) for column in self.columns]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


def _answered(answer: Number | Category, cells: Cells, classes: Sequence[str]) -> Read:
    if isinstance(answer, Number):
        return answer.read(cells)
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
