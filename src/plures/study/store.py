"""The database of a study: claims and results.

SQLite with a write-ahead log: a committed transaction survives a kill at any moment, and several processes may write. A
process claims a unit for a time (the lease) and renews the claim while it runs; others may take a claim that has
expired or whose process has ended. Every result is written together with the check that the claim still holds.

A disk may damage the file. Inconsistent pages are found when it is opened (:func:`recover` keeps what can be read); a
row that does not match its digest counts as missing, and :meth:`Store.mend` reopens it to be recomputed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from plures.errors import PluresError
from plures.files import DamagedError, full
from plures.run.fingerprint import Fingerprint, difference
from plures.study.plan import Cell, Unit

FILE = "study.db"
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (
    id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL, file TEXT NOT NULL, folder TEXT NOT NULL,
    search TEXT NOT NULL, version TEXT NOT NULL, digest TEXT);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, title TEXT NOT NULL, fingerprint TEXT NOT NULL, card TEXT NOT NULL, metric TEXT NOT NULL,
    environment TEXT NOT NULL, digest TEXT);
CREATE TABLE IF NOT EXISTS units (
    id TEXT PRIMARY KEY, cell TEXT NOT NULL, method TEXT NOT NULL, kind TEXT NOT NULL, seed INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'claimed', 'done', 'failed')),
    owner TEXT, lease REAL, claims INTEGER NOT NULL DEFAULT 0, seconds REAL, result TEXT, error TEXT,
    digest TEXT);
CREATE TABLE IF NOT EXISTS trials (
    unit TEXT NOT NULL, number INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('finished', 'pruned', 'repeated')),
    setting TEXT NOT NULL, curve TEXT NOT NULL, validation REAL, seconds REAL NOT NULL, notes TEXT NOT NULL,
    digest TEXT, PRIMARY KEY (unit, number));
CREATE TABLE IF NOT EXISTS processes (
    owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL, beat REAL NOT NULL,
    unit TEXT, doing TEXT NOT NULL DEFAULT '');
"""
KEPT = {
    "study": ("text", "file", "folder", "search", "version"),
    "cells": ("key", "title", "fingerprint", "card", "metric", "environment"),
    "units": ("id", "cell", "method", "kind", "seed", "seconds", "result"),
    "trials": ("unit", "number", "state", "setting", "curve", "validation", "seconds", "notes"),
}
"""The columns of each table that a row's digest covers; others change while processes work."""
State = Literal["finished", "pruned", "repeated"]
RECOVER = (
    "stop all processes of the study and start it with `plures study FILE --recover`, which keeps what can be read and "
    "repeats the rest; or delete the file"
)
BUSY = 60.0
"""Seconds to wait for another process's transaction."""


def digest_of(*values: object) -> str:
    """The digest of a row."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def sound(table: str, row: sqlite3.Row) -> bool:
    """Whether a row matches its digest, and a finished unit has a result."""
    if table == "units" and row["state"] == "done" and row["result"] is None:
        return False
    return bool(row["digest"] == digest_of(*(row[column] for column in KEPT[table])))


class LostError(Exception):
    """Another process took over this one's unit, because its heartbeat was missing for too long."""


@dataclass(frozen=True)
class Tried:
    """A setting that tuning tried.

    Attributes:
        number: place in the order of the unit's trials, from 0.
        state: ``finished``; ``pruned`` when it fell behind; ``repeated`` if it had been tried before and was not run.
        setting: what was searched: ``lr`` and parameters.
        curve: validation at the rounds where it was measured; NaN where nothing could be measured.
        validation: best value of the curve.
        seconds: wall time.
        notes: data that the pruner stores with a trial.
    """

    number: int
    state: State
    setting: dict[str, Any]
    curve: dict[int, float]
    validation: float
    seconds: float
    notes: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A row of a unit.

    Attributes:
        place: its number in the table.
        id: of the unit.
        cell: key of its cell.
        done: whether it has a result.
        sound: whether the row matches its digest.
    """

    place: int
    id: str
    cell: str
    done: bool
    sound: bool


@dataclass(frozen=True)
class Doing:
    """Activity of a living process."""

    owner: str
    unit: str | None
    doing: str


def born(pid: int) -> str:
    """When a process was started, if the system reports it; empty for one that has ended.

    Not used on Windows, where the check would end the process: there, claims end with their lease.
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
        create: whether to create missing files.
        shared: whether several threads use it, one at a time.
        checked: whether to look for damage first.

    Attributes:
        damaged: units whose row was damaged when the database was opened.
        faults: number of damaged rows in all tables.

    Raises:
        DamagedError: if pages of the file are inconsistent.
    """

    def __init__(self, folder: Path, *, create: bool = True, shared: bool = False, checked: bool = True) -> None:
        self.folder, self.file, self.damaged = folder, folder / FILE, set[str]()
        self.faults = 0
        if not create and not self.file.exists():
            raise PluresError(f"no study in {folder}: {self.file} is missing; run one with `plures study FILE --out`")
        folder.mkdir(parents=True, exist_ok=True)
        with self._in_words():
            self.db = opened(self.file, shared=shared)
        try:
            with self._in_words():
                self._settle_journal()
                if checked:
                    self._check_pages()
            with self._transaction():
                for statement in SCHEMA.split(";\n"):
                    self._do(statement)
            self._sign()
            if checked:
                self.damaged = {known.id for known in self._known() if not known.sound}
                others = {table: self._all(f"SELECT * FROM {table}") for table in KEPT if table != "units"}
                faults = sum(not sound(table, row) for table, rows in others.items() for row in rows)
                self.faults = len(self.damaged) + faults
        except BaseException:
            self.db.close()
            raise

    def _check_pages(self) -> None:
        """Refuse a file whose pages or indices are inconsistent."""
        (found,) = self.db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise DamagedError(f"{self.file} is damaged ({' '.join(str(found).split())})", RECOVER)
        strange = self.db.execute("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
        if strange is not None:  # it would change, unseen, what is written here
            raise DamagedError(f"{self.file} holds a {strange[0]}, {strange[1]!r}, which plures did not make", RECOVER)

    def _sign(self) -> None:
        """Give each row that this connection writes its digest."""
        for table, columns in KEPT.items():
            if "digest" not in {row["name"] for row in self._all(f"PRAGMA table_info({table})")}:
                raise PluresError(f"{self.file} is of an earlier version of plures: choose another folder with --out")
            values = ", ".join(f"NEW.{column}" for column in columns)
            for event in ("INSERT", f"UPDATE OF {', '.join(columns)}"):
                self._do(
                    f"CREATE TEMP TRIGGER {table}_{event[:6]} AFTER {event} ON main.{table} BEGIN "
                    f"UPDATE {table} SET digest = digest_of({values}) WHERE rowid = NEW.rowid; END"
                )

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
    def _in_words(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence that names the file."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            if full(error) or "readonly" in str(error) or "disk I/O" in str(error) or "unable to open" in str(error):
                raise PluresError(
                    f"cannot write {self.file}: {error}: free some space, or check the permissions, and give the same "
                    "command again; what was saved before is untouched"
                ) from error
            if "locked" in str(error):
                raise PluresError(
                    f"{self.file}: another process has locked it for {BUSY:g} seconds; stop it, and give the same "
                    "command again"
                ) from error
            raise DamagedError(
                f"{self.file} is not the database of a study, or it is damaged: {error}", RECOVER
            ) from error

    def _all(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._in_words():
            return self.db.execute(statement, values).fetchall()

    def _do(self, statement: str, values: Sequence[object] = ()) -> int:
        """Execute a statement; returns the number of changed rows."""
        with self._in_words():
            return self.db.execute(statement, values).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """An exclusive write transaction."""
        self._do("BEGIN IMMEDIATE")
        try:
            yield
            self._do("COMMIT")
        except BaseException:
            with suppress(sqlite3.OperationalError):  # SQLite rolls back automatically if the disk is full
                self.db.execute("ROLLBACK")
            raise

    # --- the study ------------------------------------------------------------------------------------------------

    def describe(self, text: str, file: str, folder: str, search: str, version: str) -> None:
        """Record the current document of the study."""
        self._do("INSERT OR REPLACE INTO study VALUES (1, ?, ?, ?, ?, ?, NULL)", (text, file, folder, search, version))

    def described(self) -> sqlite3.Row:
        rows = self._all("SELECT * FROM study")
        if not rows:
            raise PluresError(f"the study in {self.folder} was never started: run it with `plures study FILE --out`")
        if not sound("study", rows[0]):
            raise DamagedError(f"{self.file} is damaged: the study's document is missing", "start the study again")
        return rows[0]

    def insist(self, version: str) -> None:
        """Refuse to continue with results of another version of plures."""
        versions = [row["version"] for row in self._all("SELECT * FROM study") if sound("study", row)]
        if not versions:
            versions = [json.loads(row["environment"])["plures"] for row in self._cells().values()]
        other = [known for known in versions if known != version]
        if other and self._all("SELECT 1 FROM units WHERE state = 'done' LIMIT 1"):
            raise PluresError(
                f"{self.folder} holds results of plures {other[0]}, but this is {version}: choose another folder "
                "with --out, or install that version"
            )

    def _known(self) -> list[Known]:
        """All units in the database, without their results."""
        with self._in_words():
            return [
                Known(row["rowid"], row["id"], row["cell"], row["state"] == "done", sound("units", row))
                for row in self.db.execute("SELECT rowid, * FROM units")
            ]

    def mend(self, units: Sequence[Unit]) -> list[str]:
        """Reopen everything that is damaged; returns its names.

        Results on a cell whose facts are damaged are recomputed too, because their data are unknown; so are trials
        after a damaged one, because they depend on it.
        """
        names, found, spoiled = {unit.id: unit.name for unit in units}, list[str](), set[str]()
        again = "UPDATE units SET state = 'open', owner = NULL, seconds = NULL, result = NULL WHERE id = ?"
        with self._transaction():
            if any(not sound("study", row) for row in self._all("SELECT * FROM study")):
                self._do("DELETE FROM study")
            for row in self._all("SELECT rowid, * FROM cells"):
                if not sound("cells", row):
                    self._do("DELETE FROM cells WHERE rowid = ?", (row["rowid"],))
            cells = self._cells()
            for known in self._known():
                if not known.sound:
                    self._do("DELETE FROM units WHERE rowid = ?", (known.place,))
                elif known.done and known.cell not in cells:
                    self._do(again, (known.id,))
                else:
                    continue
                found.append(names.get(known.id, "a unit"))
            for row in self._all("SELECT rowid, * FROM trials"):
                if not sound("trials", row):
                    self._do("DELETE FROM trials WHERE rowid = ?", (row["rowid"],))
                    spoiled.add(row["unit"])
            for row in self._all("SELECT id, result FROM units WHERE state = 'done' AND kind = 'tuning'"):
                result = json.loads(row["result"])
                if sum(result.get(state, 0) for state in ("finished", "pruned", "repeated")) > len(
                    self.trials(row["id"])
                ):
                    self._do(again, (row["id"],))
                    spoiled.add(row["id"])
            for row in self._all("SELECT DISTINCT unit FROM trials"):
                self._do(
                    "DELETE FROM trials WHERE unit = ? AND number >= ?", (row["unit"], len(self.trials(row["unit"])))
                )
            self._add(units)
        self.damaged.clear()
        return found + [f"trials of {names.get(unit, 'a unit')}" for unit in sorted(spoiled)]

    def add(self, units: Sequence[Unit]) -> None:
        """Register units; known ones keep their state."""
        with self._transaction():
            self._add(units)

    def _add(self, units: Sequence[Unit]) -> None:
        for unit in units:
            self._do(
                "INSERT OR IGNORE INTO units (id, cell, method, kind, seed) VALUES (?, ?, ?, ?, ?)",
                (unit.id, unit.cell.key, unit.candidate.label, unit.kind, unit.seed),
            )

    def reopen(self, units: Sequence[Unit]) -> None:
        """Open failed units again."""
        with self._transaction():
            for unit in units:
                self._do("UPDATE units SET state = 'open', error = NULL WHERE id = ? AND state = 'failed'", (unit.id,))

    def cell(self, key: str) -> sqlite3.Row | None:
        """The recorded facts of a cell's data."""
        return next(
            (row for row in self._all("SELECT * FROM cells WHERE key = ?", (key,)) if sound("cells", row)), None
        )

    def _cells(self) -> dict[str, sqlite3.Row]:
        return {row["key"]: row for row in self._all("SELECT * FROM cells") if sound("cells", row)}

    def note_cell(
        self, cell: Cell, fingerprint: Fingerprint, card: str, metric: str, environment: dict[str, str]
    ) -> None:
        """Record a cell's data; refuse data that changed since the first results on them."""
        self._do(
            "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (cell.key, cell.title, json.dumps(fingerprint), card, metric, json.dumps(environment)),
        )
        self.check_cell(cell, fingerprint)

    def check_cell(self, cell: Cell, fingerprint: Fingerprint) -> None:
        """Refuse data of a cell that do not match its results."""
        known = self.cell(cell.key)
        if known is None:
            return
        if not known["fingerprint"].startswith("{"):
            raise PluresError(
                f"the results of {cell.title!r} in {self.folder} are of an earlier version of plures, which did not "
                "record its data: choose another folder with --out"
            )
        found = difference(json.loads(known["fingerprint"]), fingerprint)
        if found is not None:
            raise PluresError(
                f"the data of {cell.title!r} are not those of the results in {self.folder}: {found}; restore them, or "
                "choose another folder with --out"
            )

    # --- claims ---------------------------------------------------------------------------------------------------

    def enter(self) -> str:
        """Register this process; returns its name."""
        host, pid = socket.gethostname(), os.getpid()
        owner = f"{host}:{pid}:{os.urandom(4).hex()}"
        self._do(
            "INSERT INTO processes (owner, host, pid, born, beat) VALUES (?, ?, ?, ?, ?)",
            (owner, host, pid, born(pid), time.time()),
        )
        return owner

    def leave(self, owner: str) -> None:
        """Release a process's claims, and unregister it."""
        with self._transaction():
            self._do("UPDATE units SET state = 'open', owner = NULL WHERE owner = ? AND state = 'claimed'", (owner,))
            self._do("DELETE FROM processes WHERE owner = ?", (owner,))

    def beat(self, owner: str, unit: str | None, lease: float, doing: str) -> bool:
        """A heartbeat; returns whether the process still has its unit."""
        now = time.time()
        with self._transaction():
            about = (now, unit, doing, owner)
            self._do("UPDATE processes SET beat = ?, unit = ?, doing = ? WHERE owner = ?", about)
            if unit is None:
                return True
            held = self._do(
                "UPDATE units SET lease = ? WHERE id = ? AND owner = ? AND state = 'claimed'",
                (now + lease, unit, owner),
            )
            return held == 1

    def claim(self, units: Sequence[Unit], owner: str, lease: float) -> Unit | None:
        """The first unit that is open or abandoned and whose prerequisites are finished."""
        with self._transaction():
            rows = {row["id"]: row for row in self._all("SELECT id, state, owner, lease FROM units")}
            gone: dict[str, bool] = {}
            for unit in units:
                row = rows[unit.id]
                if unit.needs is not None and rows[unit.needs]["state"] != "done":
                    continue
                if row["state"] == "open" or (row["state"] == "claimed" and self._stale(row, gone)):
                    self._do(
                        "UPDATE units SET state = 'claimed', owner = ?, lease = ?, claims = claims + 1 WHERE id = ?",
                        (owner, time.time() + lease, unit.id),
                    )
                    self._do("UPDATE processes SET unit = ?, doing = '' WHERE owner = ?", (unit.id, owner))
                    return unit
        return None

    def _stale(self, row: sqlite3.Row, gone: dict[str, bool]) -> bool:
        owner = row["owner"]
        if owner not in gone:
            process = next(iter(self._all("SELECT host, pid, born FROM processes WHERE owner = ?", (owner,))), None)
            here = process is not None and process["host"] == socket.gethostname()
            gone[owner] = process is None or (here and born(process["pid"]) != process["born"])
        return gone[owner] or row["lease"] < time.time()

    def unfinished(self, units: Sequence[Unit]) -> list[Unit]:
        """Units that are running or can run: neither done nor failed, nor dependent on a failed one."""
        states = self.states()
        stuck = {id for id, state in states.items() if state == "failed"}
        found = []
        for unit in units:  # what a unit needs comes before it
            if unit.needs in stuck:
                stuck.add(unit.id)
            elif states[unit.id] in ("open", "claimed"):
                found.append(unit)
        return found

    def holds(self, unit: Unit, owner: str) -> bool:
        """Whether a process still has a unit."""
        held = "SELECT 1 FROM units WHERE id = ? AND owner = ? AND state = 'claimed'"
        return bool(self._all(held, (unit.id, owner)))

    def _check(self, unit: Unit, owner: str) -> None:
        if not self.holds(unit, owner):
            raise LostError(unit.name)

    def finish(self, unit: Unit, owner: str, result: str, seconds: float) -> None:
        """Write a unit's result.

        Raises:
            LostError: if the claim no longer holds; nothing is written.
        """
        with self._transaction():
            self._check(unit, owner)
            self._do(
                "UPDATE units SET state = 'done', owner = NULL, seconds = ?, result = ? WHERE id = ?",
                (seconds, result, unit.id),
            )

    def fail(self, unit: Unit, owner: str, message: str) -> None:
        """Record why a unit failed."""
        with self._transaction():
            self._check(unit, owner)
            self._do("UPDATE units SET state = 'failed', owner = NULL, error = ? WHERE id = ?", (message, unit.id))

    # --- results --------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """State of every unit; a damaged one counts as open."""
        rows = self._all("SELECT id, state FROM units")
        return {row["id"]: "open" if row["id"] in self.damaged else row["state"] for row in rows}

    def failures(self, units: Sequence[Unit]) -> list[tuple[Unit, str]]:
        """Units that failed, each with the message."""
        rows = self._all("SELECT id, error FROM units WHERE state = 'failed'")
        known = {row["id"]: row["error"] for row in rows}
        return [(unit, known[unit.id]) for unit in units if unit.id in known]

    def result(self, unit: str) -> dict[str, Any] | None:
        """A unit's result, if it is done."""
        rows = self._all("SELECT * FROM units WHERE id = ? AND state = 'done'", (unit,))
        return next((json.loads(row["result"]) for row in rows if sound("units", row)), None)

    def spent(self) -> dict[str, float]:
        """Seconds of every unit that is done."""
        rows = self._all("SELECT id, seconds FROM units WHERE state = 'done'")
        return {row["id"]: row["seconds"] for row in rows}

    def results(self, kind: str) -> dict[str, tuple[dict[str, Any], float]]:
        """Result and seconds of every unit of a kind that is done."""
        rows = self._all("SELECT * FROM units WHERE state = 'done' AND kind = ?", (kind,))
        return {row["id"]: (json.loads(row["result"]), row["seconds"]) for row in rows if sound("units", row)}

    def living(self, patience: float) -> list[Doing]:
        """Processes with a recent heartbeat."""
        rows = self._all("SELECT * FROM processes WHERE beat > ? ORDER BY owner", (time.time() - patience,))
        return [Doing(row["owner"], row["unit"], row["doing"]) for row in rows]

    def try_out(self, unit: Unit, owner: str, tried: Tried) -> None:
        """Write a trial; the claim must hold."""
        curve = {step: None if math.isnan(value) else value for step, value in tried.curve.items()}
        validation = None if math.isnan(tried.validation) else tried.validation
        found = (json.dumps(curve), validation, tried.seconds, json.dumps(tried.notes))
        with self._transaction():
            self._check(unit, owner)
            self._do(
                "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (unit.id, tried.number, tried.state, json.dumps(tried.setting), *found),
            )

    def trials(self, unit: str) -> list[Tried]:
        """A unit's trials in order, up to the first damaged one."""
        rows = self._all("SELECT * FROM trials WHERE unit = ? ORDER BY number", (unit,))
        whole = (row["number"] == place and sound("trials", row) for place, row in enumerate(rows))
        rows = [row for row, _ in zip(rows, takewhile(bool, whole), strict=False)]
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


def opened(file: Path, *, shared: bool = False) -> sqlite3.Connection:
    """A connection to a database file."""
    db = sqlite3.connect(file, timeout=BUSY, isolation_level=None, check_same_thread=not shared)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA temp_store = MEMORY")
    db.text_factory = lambda text: text.decode("utf-8", "replace")  # damaged text does not match its digest
    db.create_function("digest_of", -1, digest_of, deterministic=True)
    return db


def recover(folder: Path) -> int:
    """Copy what can be read of a damaged database into a new one; returns the number of results.

    The damaged file stays beside it as ``study.db.damaged``. No process may use the study meanwhile.
    """
    file, aside = folder / FILE, folder / f"{FILE}.damaged"
    if not file.exists():
        raise PluresError(f"no study in {folder}: {file} is missing; run one with `plures study FILE --out`")
    with closing(opened(file)) as damaged:
        rows = {table: readable(damaged, table) for table in KEPT}
    for end in ("", "-wal", "-shm"):
        there = file.with_name(file.name + end)
        if there.exists():
            there.replace(aside.with_name(aside.name + end))
    store = Store(folder)
    known = {table: [row["name"] for row in store._all(f"PRAGMA table_info({table})")] for table in KEPT}
    with closing(store.db), store._transaction():
        for table, found in rows.items():
            for row in found:
                columns = [column for column in known[table] if column in row.keys()]  # noqa: SIM118
                store._do(
                    f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                    [row[column] for column in columns],
                )
    return sum(row["result"] is not None for row in rows["units"])


def readable(db: sqlite3.Connection, table: str) -> list[sqlite3.Row]:
    """The intact rows of a table, read from both of its ends."""
    found: dict[str, sqlite3.Row] = {}
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError, IndexError):  # IndexError: the table has other columns
            for row in db.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY rowid {order}"):
                if sound(table, row):
                    found[row["digest"]] = row
    return list(found.values())
