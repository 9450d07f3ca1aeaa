"""The one database file of a study: who does what, and what came out.

SQLite with a write-ahead log: what a transaction wrote survives a kill at any moment, and several processes may write.
A process claims a unit for a time (the lease) and renews the claim while it lives; a claim whose time is over, or whose
process is gone, is open to others. Every result is written together with the check that the claim still holds.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plures.errors import PluresError
from plures.run.fingerprint import Fingerprint, difference
from plures.study.plan import Cell, Unit

FILE = "study.db"
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (
    id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL, file TEXT NOT NULL, folder TEXT NOT NULL,
    search TEXT NOT NULL, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, title TEXT NOT NULL, fingerprint TEXT NOT NULL, card TEXT NOT NULL, metric TEXT NOT NULL,
    environment TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    id TEXT PRIMARY KEY, cell TEXT NOT NULL, method TEXT NOT NULL, kind TEXT NOT NULL, seed INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'claimed', 'done', 'failed')),
    owner TEXT, lease REAL, claims INTEGER NOT NULL DEFAULT 0, seconds REAL, result TEXT, error TEXT);
CREATE TABLE IF NOT EXISTS trials (
    unit TEXT NOT NULL, number INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('finished', 'pruned', 'repeated')),
    setting TEXT NOT NULL, curve TEXT NOT NULL, validation REAL, seconds REAL NOT NULL, notes TEXT NOT NULL,
    PRIMARY KEY (unit, number));
CREATE TABLE IF NOT EXISTS processes (
    owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL, beat REAL NOT NULL,
    unit TEXT, doing TEXT NOT NULL DEFAULT '');
"""
State = Literal["finished", "pruned", "repeated"]
BUSY = 60.0
"""Seconds to wait for another process's transaction."""


class LostError(Exception):
    """Another process took this one's unit over, because it gave no sign of life for too long."""


@dataclass(frozen=True)
class Tried:
    """A setting that tuning tried.

    Attributes:
        number: place in the order of the unit's trials, from 0.
        state: ``finished``; ``pruned`` when it fell behind; ``repeated`` if it had been tried before and was not run.
        setting: what was searched: ``lr`` and parameters.
        curve: validation at the rounds where it was read; NaN where nothing could be measured.
        validation: best value of the curve.
        seconds: wall time.
        notes: what the pruner keeps with a trial.
    """

    number: int
    state: State
    setting: dict[str, Any]
    curve: dict[int, float]
    validation: float
    seconds: float
    notes: dict[str, Any]


@dataclass(frozen=True)
class Doing:
    """What a living process does."""

    owner: str
    unit: str | None
    doing: str


def born(pid: int) -> str:
    """When a process was started, as far as the system tells; empty for one that is gone.

    Windows is not asked, for there the question would end the process: its claims end with their lease.
    """
    if sys.platform == "win32":
        return "alive"
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except OSError:
        return ""
    else:
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"


class Store:
    """A connection to a study's database; one for each thread.

    Args:
        folder: the study's folder.
        create: whether to make what is missing.
        shared: whether several threads use it, one at a time.
    """

    def __init__(self, folder: Path, *, create: bool = True, shared: bool = False) -> None:
        self.folder, self.file = folder, folder / FILE
        if not create and not self.file.exists():
            raise PluresError(f"no study in {folder}: {self.file} is missing; run one with `plures study FILE --out`")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.db = sqlite3.connect(self.file, timeout=BUSY, isolation_level=None, check_same_thread=not shared)
            self.db.row_factory = sqlite3.Row
            self._settle_journal()
            with self._transaction():
                for statement in SCHEMA.split(";\n"):
                    self.db.execute(statement)
        except sqlite3.DatabaseError as error:
            raise PluresError(f"{self.file} is not the database of a study: {error}") from error

    def _settle_journal(self) -> None:
        """Switch to the write-ahead log; two processes that do so at once wait for each other here."""
        until = time.monotonic() + BUSY
        while True:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute("PRAGMA synchronous = FULL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes meanwhile."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # --- the study ------------------------------------------------------------------------------------------------

    def describe(self, text: str, file: str, folder: str, search: str, version: str) -> None:
        """Note what the study is now."""
        self.db.execute("INSERT OR REPLACE INTO study VALUES (1, ?, ?, ?, ?, ?)", (text, file, folder, search, version))

    def described(self) -> sqlite3.Row:
        row = self.db.execute("SELECT * FROM study").fetchone()
        if row is None:
            raise PluresError(f"the study in {self.folder} was never started: run it with `plures study FILE --out`")
        assert isinstance(row, sqlite3.Row)
        return row

    def insist(self, version: str) -> None:
        """Refuse to go on with results of another version of plures."""
        row = self.db.execute("SELECT version FROM study").fetchone()
        done = self.db.execute("SELECT 1 FROM units WHERE state = 'done'").fetchone()
        if row is not None and done is not None and row["version"] != version:
            raise PluresError(
                f"{self.folder} holds results of plures {row['version']}, and this is {version}: choose another folder "
                "with --out, or install that version"
            )

    def add(self, units: Sequence[Unit]) -> None:
        """Make units known; those that are known keep what they have."""
        with self._transaction():
            self.db.executemany(
                "INSERT OR IGNORE INTO units (id, cell, method, kind, seed) VALUES (?, ?, ?, ?, ?)",
                [(unit.id, unit.cell.key, unit.candidate.label, unit.kind, unit.seed) for unit in units],
            )

    def reopen(self, units: Sequence[Unit]) -> None:
        """Open failed units again."""
        with self._transaction():
            self.db.executemany(
                "UPDATE units SET state = 'open', error = NULL WHERE id = ? AND state = 'failed'",
                [(unit.id,) for unit in units],
            )

    def cell(self, key: str) -> sqlite3.Row | None:
        """What is known of a cell's data."""
        row = self.db.execute("SELECT * FROM cells WHERE key = ?", (key,)).fetchone()
        assert row is None or isinstance(row, sqlite3.Row)
        return row

    def note_cell(
        self, cell: Cell, fingerprint: Fingerprint, card: str, metric: str, environment: dict[str, str]
    ) -> None:
        """Note a cell's data; refuse data that changed since the first results on them."""
        self.db.execute(
            "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?)",
            (cell.key, cell.title, json.dumps(fingerprint), card, metric, json.dumps(environment)),
        )
        self.check_cell(cell, fingerprint)

    def check_cell(self, cell: Cell, fingerprint: Fingerprint) -> None:
        """Refuse data of a cell that are not those of its results."""
        known = self.cell(cell.key)
        if known is None:
            return
        if not known["fingerprint"].startswith("{"):
            raise PluresError(
                f"the results of {cell.title!r} in {self.folder} are of an earlier version of plures, which did not "
                "keep what its data were: choose another folder with --out"
            )
        found = difference(json.loads(known["fingerprint"]), fingerprint)
        if found is not None:
            raise PluresError(
                f"the data of {cell.title!r} are not those of the results in {self.folder}: {found}; restore them, or "
                "choose another folder with --out"
            )

    # --- claims ---------------------------------------------------------------------------------------------------

    def enter(self) -> str:
        """Enter this process; returns its name."""
        host, pid = socket.gethostname(), os.getpid()
        owner = f"{host}:{pid}:{os.urandom(4).hex()}"
        self.db.execute(
            "INSERT INTO processes (owner, host, pid, born, beat) VALUES (?, ?, ?, ?, ?)",
            (owner, host, pid, born(pid), time.time()),
        )
        return owner

    def leave(self, owner: str) -> None:
        """Give back what a process claimed, and forget it."""
        with self._transaction():
            self.db.execute(
                "UPDATE units SET state = 'open', owner = NULL WHERE owner = ? AND state = 'claimed'", (owner,)
            )
            self.db.execute("DELETE FROM processes WHERE owner = ?", (owner,))

    def beat(self, owner: str, unit: str | None, lease: float, doing: str) -> bool:
        """A sign of life; whether the process still has its unit."""
        now = time.time()
        with self._transaction():
            about = (now, unit, doing, owner)
            self.db.execute("UPDATE processes SET beat = ?, unit = ?, doing = ? WHERE owner = ?", about)
            if unit is None:
                return True
            held = self.db.execute(
                "UPDATE units SET lease = ? WHERE id = ? AND owner = ? AND state = 'claimed'",
                (now + lease, unit, owner),
            )
            return held.rowcount == 1

    def claim(self, units: Sequence[Unit], owner: str, lease: float) -> Unit | None:
        """The first unit that is open, or whose process is gone, and that needs nothing unfinished."""
        with self._transaction():
            rows = {row["id"]: row for row in self.db.execute("SELECT id, state, owner, lease FROM units")}
            gone: dict[str, bool] = {}
            for unit in units:
                row = rows[unit.id]
                if unit.needs is not None and rows[unit.needs]["state"] != "done":
                    continue
                if row["state"] == "open" or (row["state"] == "claimed" and self._stale(row, gone)):
                    self.db.execute(
                        "UPDATE units SET state = 'claimed', owner = ?, lease = ?, claims = claims + 1 WHERE id = ?",
                        (owner, time.time() + lease, unit.id),
                    )
                    self.db.execute("UPDATE processes SET unit = ?, doing = '' WHERE owner = ?", (unit.id, owner))
                    return unit
        return None

    def _stale(self, row: sqlite3.Row, gone: dict[str, bool]) -> bool:
        owner = row["owner"]
        if owner not in gone:
            process = self.db.execute("SELECT host, pid, born FROM processes WHERE owner = ?", (owner,)).fetchone()
            here = process is not None and process["host"] == socket.gethostname()
            gone[owner] = process is None or (here and born(process["pid"]) != process["born"])
        return gone[owner] or row["lease"] < time.time()

    def unfinished(self, units: Sequence[Unit]) -> list[Unit]:
        """Units that somebody does or could do: neither done nor failed, nor in need of a failed one."""
        states = self.states()
        return [
            unit
            for unit in units
            if states[unit.id] in ("open", "claimed") and (unit.needs is None or states[unit.needs] != "failed")
        ]

    def holds(self, unit: Unit, owner: str) -> bool:
        """Whether a process still has a unit."""
        row = self.db.execute("SELECT state, owner FROM units WHERE id = ?", (unit.id,)).fetchone()
        return bool(row["state"] == "claimed" and row["owner"] == owner)

    def _check(self, unit: Unit, owner: str) -> None:
        if not self.holds(unit, owner):
            raise LostError(unit.name)

    def finish(self, unit: Unit, owner: str, result: str, seconds: float) -> None:
        """Write a unit's result.

        Raises:
            LostError: if the claim does not hold any more; nothing is written.
        """
        with self._transaction():
            self._check(unit, owner)
            self.db.execute(
                "UPDATE units SET state = 'done', owner = NULL, seconds = ?, result = ? WHERE id = ?",
                (seconds, result, unit.id),
            )

    def fail(self, unit: Unit, owner: str, message: str) -> None:
        """Note why a unit cannot be done."""
        with self._transaction():
            self._check(unit, owner)
            self.db.execute(
                "UPDATE units SET state = 'failed', owner = NULL, error = ? WHERE id = ?", (message, unit.id)
            )

    # --- results --------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """State of every unit."""
        return {row["id"]: row["state"] for row in self.db.execute("SELECT id, state FROM units")}

    def failures(self, units: Sequence[Unit]) -> list[tuple[Unit, str]]:
        """Units that failed, each with the message."""
        rows = self.db.execute("SELECT id, error FROM units WHERE state = 'failed'")
        known = {row["id"]: row["error"] for row in rows}
        return [(unit, known[unit.id]) for unit in units if unit.id in known]

    def result(self, unit: str) -> dict[str, Any] | None:
        """A unit's result, if it is done."""
        row = self.db.execute("SELECT result FROM units WHERE id = ? AND state = 'done'", (unit,)).fetchone()
        return None if row is None else json.loads(row["result"])

    def spent(self) -> dict[str, float]:
        """Seconds of every unit that is done."""
        rows = self.db.execute("SELECT id, seconds FROM units WHERE state = 'done'")
        return {row["id"]: row["seconds"] for row in rows}

    def results(self, kind: str) -> dict[str, tuple[dict[str, Any], float]]:
        """Result and seconds of every unit of a kind that is done."""
        rows = self.db.execute("SELECT id, result, seconds FROM units WHERE state = 'done' AND kind = ?", (kind,))
        return {row["id"]: (json.loads(row["result"]), row["seconds"]) for row in rows}

    def living(self, patience: float) -> list[Doing]:
        """Processes that gave a sign of life lately."""
        rows = self.db.execute("SELECT * FROM processes WHERE beat > ? ORDER BY owner", (time.time() - patience,))
        return [Doing(row["owner"], row["unit"], row["doing"]) for row in rows]

    def try_out(self, unit: Unit, owner: str, tried: Tried) -> None:
        """Write a trial; the claim must hold."""
        curve = {step: None if math.isnan(value) else value for step, value in tried.curve.items()}
        validation = None if math.isnan(tried.validation) else tried.validation
        found = (json.dumps(curve), validation, tried.seconds, json.dumps(tried.notes))
        with self._transaction():
            self._check(unit, owner)
            self.db.execute(
                "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (unit.id, tried.number, tried.state, json.dumps(tried.setting), *found),
            )

    def trials(self, unit: str) -> list[Tried]:
        """A unit's trials in their order."""
        rows = self.db.execute("SELECT * FROM trials WHERE unit = ? ORDER BY number", (unit,))
        return [
            Tried(
                row["number"],
                row["state"],
                json.loads(row["setting"]),
                {int(step): _number(value) for step, value in json.loads(row["curve"]).items()},
                _number(row["validation"]),
                row["seconds"],
                json.loads(row["notes"]),
            )
            for row in rows
        ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
