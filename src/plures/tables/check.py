"""Does a site's table fit the declared schema? Findings in plain words, and a data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.tables.column import Read
from plures.tables.finding import Finding, told_rows
from plures.tables.schema import Reading, Schema, Table

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
            (column -> share). It describes the site's data, so it stays at the site unless the site shows it.
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
            table += [(f.level, f.column, told_rows(f.rows) if f.rows else "", f.sentence) for f in self.findings]
            widths = [max(len(row[place]) for row in table) for place in range(3)]
            lines += ["", *("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in table)]
        if any(finding.rows for finding in self.findings):
            lines += ["", "Rows are counted from 1, the first row below the header."]
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
    found = [*reading.findings, *_notes(schema, reading)]
    ordered = sorted(found, key=lambda finding: finding.level != "error")
    return Report(
        client, tuple(replace(finding, client=client) for finding in ordered), _sheet(schema, reading, client)
    )


def _notes(schema: Schema, reading: Reading) -> list[Finding]:
    """Notes: legal, but worth knowing."""
    if not reading.rows:
        return []
    notes = [_note(name, "is not declared", "nobody will read it") for name in reading.extra]
    for name, read in reading.columns.items():
        notes += _constant(name, read)
    notes += [] if reading.findings else _twins(reading)
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
        notes.append(_note("", what, "take the site's scores with care"))
    if reading.target is not None and schema.classes:
        notes += _classes(schema, reading.target)
    return notes


def _constant(name: str, read: Read) -> list[Finding]:
    known = read.values[~np.isnan(read.values)]
    if not len(known):
        whole = "has no value at all" if read.missing.all() else ""
        return [_note(name, whole, "predictions cannot use it here")] if whole else []
    if len(known) > 1 and bool((known == known[0]).all()):
        return [_note(name, f"has one and the same value in all {len(known)} rows that have any", "is that right?")]
    return []


def _twins(reading: Reading) -> list[Finding]:
    """Rows that duplicate an earlier one in every declared column and the target."""
    reads = [*reading.columns.values(), *([reading.target] if reading.target else [])]
    rows = np.column_stack([np.nan_to_num(read.values, nan=np.inf) for read in reads])
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    twins = tuple((np.flatnonzero(first[place.reshape(-1)] != np.arange(len(rows))) + 1).tolist())
    if not twins:
        return []
    original = int(first[place.reshape(-1)][twins[0] - 1]) + 1
    what = f"{len(twins)} row{'s repeat' if len(twins) > 1 else ' repeats'} an earlier one, the first row {original}"
    return [Finding("note", "", what, "remove what is the same case twice", twins)]


def _classes(schema: Schema, target: Read) -> list[Finding]:
    counts = _counts(schema, target)
    there = {name: count for name, count in counts.items() if count}
    rows = sum(there.values())
    if len(there) == 1:
        what = f"all rows are of class {next(iter(there))!r}"
        return [_note(schema.target, what, "a model learned here alone predicts nothing else")]
    told = []
    for name, count in counts.items():
        remedy = "this site cannot measure how well it is recognised" if not count else "its scores are uncertain"
        if rows and (count < ENOUGH or count < RARE * rows):
            what = f"class {name!r} has {_several(count, 'row')} of {rows} ({100 * count / rows:.3g} %)"
            told.append(_note(schema.target, what, remedy))
    return told


def _sheet(schema: Schema, reading: Reading, client: str) -> Sheet:
    target = reading.target
    sheet: Sheet = {"client": client, "rows": reading.rows, "target": schema.target}
    if target is not None and schema.classes:
        sheet["labels"] = _counts(schema, target)
    if target is not None and not schema.classes:
        sheet["values"] = _moments(target.values[np.isfinite(target.values)])
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


def _counts(schema: Schema, target: Read) -> dict[str, int]:
    codes = target.values[~np.isnan(target.values)].astype(np.int64)
    return dict(zip(schema.classes, np.bincount(codes, minlength=len(schema.classes)).tolist(), strict=True))


def _note(column: str, what: str, remedy: str) -> Finding:
    return Finding("note", column, what, remedy)


def _several(count: object, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
