"""Check whether a site's table fits the declared schema: findings in plain words, and a data sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from plures.cells import place as in_words
from plures.errors import PluresError
from plures.tables.column import Read
from plures.tables.finding import Finding
from plures.tables.schema import Reading, Schema, Table
from plures.tables.table import lines_of

ENOUGH = 10
"""A note is given for a class or a test split with fewer rows."""

RARE = 0.1
"""A note is given for a class with a smaller share of the rows."""

Sheet = dict[str, object]


@dataclass(frozen=True)
class Report:
    """The findings for a site's table.

    Attributes:
        client: name of the site.
        findings: errors first.
        sheet: facts for the model card, ready for JSON: ``client``, ``rows``, ``target``, ``labels`` (class -> rows) or
            ``values`` (mean, std, low and high of the target), ``span`` (first and last date, or None) and ``missing``
            (column -> share). It describes the site's data, so it stays at the site unless the site shares it.
    """

    client: str
    findings: tuple[Finding, ...]
    sheet: Sheet

    @property
    def ok(self) -> bool:
        """Whether the site can join: no finding is an error."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "note")

    def text(self) -> str:
        """A plain table of the findings, and the verdict."""
        counts = f"{_several(len(self.errors), 'error')}, {_several(len(self.notes), 'note')}"
        verdict = "the data fit the schema" if self.ok else "the data do not fit the schema yet"
        lines = [f"client {self.client!r}, {_several(self.sheet['rows'], 'row')}: {verdict} ({counts})"]
        if self.findings:
            table = [("", "column", "rows", "finding")]
            table += [(f.level, f.column, f.where, f.sentence) for f in self.findings]
            widths = [max(len(row[place]) for row in table) for place in range(3)]
            lines += ["", *("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in table)]
        if any(finding.rows for finding in self.findings):
            of_file = any(finding.lines for finding in self.findings)
            counted = "Rows are counted from 1, the first row below the header"
            how = "Lines are those of the file, the header included" if of_file else counted
            lines += ["", f"{how}."]
        return "\n".join(lines)


def check(schema: Schema, table: Table, client: str) -> Report:
    """Compare a site's table with the schema.

    Args:
        schema: the declared schema.
        table: the site's data: column -> values, or a frame.
        client: name of the site.

    Raises:
        PluresError: if there is no table to check at all.
    """
    try:
        reading = schema.read(table)
    except PluresError as error:
        raise PluresError(f"client {client!r}: {error}") from error
    lines = lines_of(table)
    found = [*reading.findings, *(finding.at(lines) for finding in _notes(schema, reading, lines))]
    ordered = sorted(found, key=lambda finding: finding.level != "error")
    return Report(
        client, tuple(replace(finding, client=client) for finding in ordered), _sheet(schema, reading, client)
    )


def _notes(schema: Schema, reading: Reading, lines: Sequence[int]) -> list[Finding]:
    """Notes: valid, but worth knowing."""
    if not reading.rows:
        return []
    notes = [_note(name, "is not declared", "nobody will read it") for name in reading.extra]
    for name, read in reading.columns.items():
        notes += _constant(name, read)
    notes += [] if reading.findings else _twins(reading, lines)
    if reading.dates is not None and np.isnat(reading.dates).any():
        gaps = np.isnat(reading.dates)
        notes.append(
            _note(
                schema.date or "", f"{_several(int(gaps.sum()), 'row')} without a date", "the data span leaves them out"
            )
        )
    tested = round(schema.splits.test * reading.rows)
    if schema.splits.test and reading.rows >= schema.splits.least and tested < ENOUGH:
        what = f"{_several(reading.rows, 'row')}, so about {max(tested, 1)} to test on"
        notes.append(_note("", what, "treat the site's scores with caution"))
    counted = _counts(schema, reading)
    return notes if counted is None else [*notes, *_rare(schema, *counted)]


def _constant(name: str, read: Read) -> list[Finding]:
    known = read.values[~np.isnan(read.values)]
    if not len(known):
        whole = "has no value at all" if read.missing.all() else ""
        return [_note(name, whole, "predictions cannot use it here")] if whole else []
    if len(known) > 1 and bool((known == known[0]).all()):
        return [_note(name, f"has the same value in all {len(known)} rows that have one", "is that right?")]
    return []


def _twins(reading: Reading, lines: Sequence[int]) -> list[Finding]:
    """Rows that duplicate an earlier one in every declared column and the target."""
    reads = [*reading.columns.values(), *reading.targets.values()]
    rows = np.column_stack([np.nan_to_num(read.values, nan=np.inf) for read in reads])
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    twins = tuple((np.flatnonzero(first[place.reshape(-1)] != np.arange(len(rows))) + 1).tolist())
    if not twins:
        return []
    original = in_words(int(first[place.reshape(-1)][twins[0] - 1]), lines)
    what = f"{len(twins)} row{'s repeat' if len(twins) > 1 else ' repeats'} an earlier one, the first {original}"
    return [Finding("note", "", what, "remove cases that occur twice", twins)]


def _rare(schema: Schema, counts: Mapping[str, int], rows: int) -> list[Finding]:
    """Classes or labels of which a site has few rows, or nothing else."""
    found = []
    for name, count in counts.items():
        column, noun = (schema.target[0], "class") if schema.classes else (name, "label")
        if count == rows:
            what = f"all rows are of class {name!r}" if schema.classes else f"all rows have the label {name!r}"
            found.append(_note(column, what, "a model learned here alone predicts nothing else"))
        elif (count < ENOUGH or count < RARE * rows) and not (schema.classes and rows in counts.values()):
            what = f"{noun} {name!r} has {_several(count, 'row')} of {rows} ({100 * count / rows:.3g} %)"
            remedy = "this site cannot measure how well it is recognised" if not count else "its scores are uncertain"
            found.append(_note(column, what, remedy))
    return found


def _sheet(schema: Schema, reading: Reading, client: str) -> Sheet:
    targets, several = reading.targets, len(schema.target) > 1
    sheet: Sheet = {"client": client, "rows": reading.rows, "target": schema.target if several else schema.target[0]}
    counted = _counts(schema, reading)
    if counted is not None:
        sheet["labels"] = counted[0]
    elif targets and not schema.task_of.probable:
        values = {name: _moments(read.values[np.isfinite(read.values)]) for name, read in targets.items()}
        sheet["values"] = values if several else values[schema.target[0]]
    dates = None if reading.dates is None else reading.dates[~np.isnat(reading.dates)]
    days = [] if dates is None or not len(dates) else [str(day) for day in (dates.min(), dates.max())]
    sheet["span"] = [day[:10] for day in days] or None
    sheet["missing"] = {name: float(read.missing.mean()) for name, read in reading.columns.items() if reading.rows}
    return sheet


def _moments(values: NDArray[np.float64]) -> Mapping[str, float] | None:
    if not len(values):
        return None
    numbers = {"mean": values.mean(), "std": values.std(), "low": values.min(), "high": values.max()}
    return {name: float(value) for name, value in numbers.items()}


def _counts(schema: Schema, reading: Reading) -> tuple[dict[str, int], int] | None:
    """Rows of every class or label, and all rows whose target is known; ``None`` where numbers are predicted."""
    task = schema.task_of
    if len(reading.targets) < len(schema.target):
        return None
    values = np.column_stack([read.values for read in reading.targets.values()])
    known = torch.from_numpy(values[~np.isnan(values).any(1)]).to(task.number).reshape(-1, *task.target)
    counts = task.counts(known)
    return None if counts is None else (dict(zip(task.names, counts.tolist(), strict=True)), len(known))


def _note(column: str, what: str, remedy: str) -> Finding:
    return Finding("note", column, what, remedy)


def _several(count: object, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
