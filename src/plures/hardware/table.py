"""A fleet from the user's own table: a file by client, or columns of the federation's metadata."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plures.errors import PluresError, suggestion
from plures.hardware.fleet import DAY, Fleet
from plures.signature import checked

CLIENT, KIND = "client", "device"
COLUMNS: Mapping[str, tuple[str, float, float | None]] = {
    "gflops": ("speed", 1e9, None),
    "memory_mb": ("memory", 1e6, math.inf),
    "up_mbit": ("up", 1e6 / 8, None),
    "down_mbit": ("down", 1e6 / 8, None),
    "joules_per_gflop": ("compute_energy", 1e-9, 0.0),
    "joules_per_mb_up": ("send_energy", 1e-6, 0.0),
    "joules_per_mb_down": ("receive_energy", 1e-6, 0.0),
    "opens_hour": ("opens", 3600.0, 0.0),
    "open_hours": ("stays", 3600.0, DAY / 3600.0),
    "failure": ("failure", 1.0, 0.0),
}
"""Column -> field of :class:`Fleet`, the field's unit, and the value where there is no such column."""


@checked
@dataclass(frozen=True)
class FleetTable:
    """Devices as a table has them, one row for each client.

    Columns are ``gflops`` (that training reaches, per second), ``up_mbit`` and ``down_mbit`` (per second), and, where
    they are known: ``device`` (its class), ``memory_mb``, ``joules_per_gflop``, ``joules_per_mb_up``,
    ``joules_per_mb_down``, ``opens_hour`` and ``open_hours`` (of each day), and ``failure`` (the probability that a
    visit fails). Without them a device has memory enough, needs no energy, is always there and never fails.

    Attributes:
        rows: client -> column -> value; ``None`` to read the columns from the federation's metadata.

    Examples:
        >>> rows = {"ann": {"gflops": "5", "up_mbit": "6", "down_mbit": "13", "device": "old"}}
        >>> plures.hardware.FleetTable(rows).fleet(["ann"], {}).speed.tolist()
        [5000000000.0]
    """

    rows: Mapping[str, Mapping[str, object]] | None = None

    @classmethod
    def read(cls, file: Path | str) -> FleetTable:
        """A table in a CSV file with the columns above and ``client``.

        Raises:
            PluresError: if it cannot be read, or a column is unknown or missing.
        """
        path = Path(file)
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                table = csv.DictReader(lines)
                columns, found = list(table.fieldnames or ()), list(table)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PluresError(
                f"fleet {str(path)!r} cannot be read: {error}; give a CSV file with a row by client"
            ) from error
        if CLIENT not in columns:
            raise PluresError(f"fleet {str(path)!r} has no column {CLIENT!r}: add one with the clients' names")
        for column in columns:
            if column not in {CLIENT, KIND, *COLUMNS}:
                raise PluresError(
                    f"fleet {str(path)!r}: unknown column {column!r}; {suggestion(column, [KIND, *COLUMNS])}"
                )
        rows: dict[str, Mapping[str, object]] = {}
        for row in found:
            if row[CLIENT] in rows:
                raise PluresError(f"fleet {str(path)!r}: client {row[CLIENT]!r} has two rows; leave one")
            rows[row[CLIENT]] = {name: value for name, value in row.items() if name != CLIENT}
        return cls(rows)

    def fleet(self, clients: Sequence[str], metadata: Mapping[str, Sequence[object]]) -> Fleet:
        """The devices of some clients."""
        where = "the federation's metadata" if self.rows is None else "the table of devices"
        if self.rows is None:
            rows = {c: {k: column[i] for k, column in metadata.items()} for i, c in enumerate(clients)}
        else:
            rows = {c: dict(self.rows[c]) for c in clients if c in self.rows}
        for client in clients:
            if client not in rows:
                raise PluresError(f"fleet: client {client!r} is not in {where}: add a row for it")
        fields = {
            field: np.array([_number(client, rows[client], column, where) for client in clients]) * unit
            for column, (field, unit, _) in COLUMNS.items()
        }
        kinds = tuple(str(rows[client].get(KIND) or "device") for client in clients)
        return Fleet(tuple(clients), kinds, **fields)


def _number(client: str, row: Mapping[str, object], column: str, where: str) -> float:
    """A cell as a number, or the default of its column."""
    value, default = row.get(column), COLUMNS[column][2]
    if column not in row and default is not None:
        return default
    try:
        return float(str(value))
    except ValueError:
        raise PluresError(
            f"fleet: client {client!r} has {column} {value!r} in {where}: give a number"
            + ("" if column in row else f", in a column {column!r}")
        ) from None
