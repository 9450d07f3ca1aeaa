"""A study whose database is damaged or whose disk is full: the same results in the end, and one sentence."""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rich.console import Console
from study_worker import SMALL, rows
from typer.testing import CliRunner

import plures.cli.study as module
import plures.files
from harm import harmed
from plures.cli import app
from plures.errors import PluresError, PluresWarning
from plures.evaluate.results import BASELINES
from plures.study import Plan, Store, Study, begin, conduct, plan_of, read_study, recover

FILE = "study.db"
T = TypeVar("T")


def work(plan: Plan, folder: Path) -> list[str]:
    """Do the remaining work of a study; returns its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluresWarning)
        store = Store(folder)
        try:
            begin(plan, store)
            conduct(plan, store, plan.measures, lambda event: None)
            conduct(plan, store, plan.units, lambda event: None)
        finally:
            store.close()
    return [str(one.message) for one in caught if issubclass(one.category, PluresWarning)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("plan") / "study.toml"
    file.write_text(SMALL)
    return plan_of(read_study(file), "optuna")


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that is done, in one file."""
    folder = tmp_path_factory.mktemp("whole")
    assert work(plan, folder) == []
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoints", FILE]
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "study")
    return tmp_path / "study"


def kept(store: Store, plan: Plan) -> dict[str, Any]:
    """Every result, trial and cell that a database gives."""
    units = (*plan.measures, *plan.units)
    found: dict[str, Any] = {unit.id: store.result(unit.id) for unit in units}
    found |= {f"trial {trial.number} of {u.id}": trial for u in plan.units for trial in store.trials(u.id)}
    found |= {f"cell {cell.key}": tuple(row) for cell in plan.cells if (row := store.cell(cell.key)) is not None}
    return {name: value for name, value in found.items() if value is not None}


def everything(folder: Path, plan: Plan) -> tuple[dict[str, Any], Any]:
    """Everything that can be read from a study's folder."""
    study = Study(folder)
    try:
        study.comparisons()
        return kept(study._store, plan), study.frame()
    finally:
        study.close()


def tried(reading: Callable[[], T]) -> tuple[T | None, PluresError | None]:
    """The result of reading, or the reason of the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluresWarning)
        try:
            return reading(), None
        except PluresError as error:
            return None, error


def said(error: PluresError, folder: Path) -> bool:
    return str(folder) in str(error) and len(str(error).splitlines()) == 1


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Damaged files: damage everywhere, and flips in each page's first bytes, where SQLite keeps its own data."""
    content, draw = (folder / FILE).read_bytes(), random.Random(5)
    yield from harmed(content, flips=100)
    for page in range(0, len(content), 4096):
        for place in (page + draw.randrange(12), page + draw.randrange(100), page + 4095 - draw.randrange(300)):
            yield f"bit of byte {place}", content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def test_what_a_damaged_database_gives_is_right_or_named(whole: Path, folder: Path, plan: Plan) -> None:
    store = Store(whole)
    told = kept(store, plan)
    frame = Study(whole).frame()
    store.close()
    found = {"right": 0, "less": 0, "named": 0, "nothing saved": 0}
    for what, harm in contents(whole):
        for file in folder.glob(f"{FILE}*"):
            file.unlink()
        (folder / FILE).write_bytes(harm)
        read, refused = tried(lambda: everything(folder, plan))
        assert refused is None or said(refused, folder), what
        if read is None:
            found["named"] += 1
            number, _ = tried(lambda: recover(folder))
            read = everything(folder, plan) if tried(lambda: Study(folder))[0] else ({}, frame[:0])
            assert number is not None, what
            found["nothing saved"] += not number
        else:
            found["right" if read[0] == told else "less"] += 1
        now, runs = read
        assert runs.empty or runs.merge(frame, how="left", indicator=True)["_merge"].eq("both").all(), what
        assert {name: told[name] for name in now} == now, what
    assert found["named"] > 30, found
    assert found["less"] > 20
    assert found["right"] > 20
    assert found["nothing saved"] < 0.6 * found["named"]


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        (
            "UPDATE units SET result = replace(result, '0', '1') WHERE kind = 'seed' AND seed = 1",
            "intercept, seed 1; ",
        ),
        ("UPDATE units SET result = NULL WHERE kind = 'tuning'", "ditto, tuning"),
        ("UPDATE trials SET validation = validation + 0.01 WHERE number = 1", "trials of heart, ditto, tuning"),
        (
            "UPDATE cells SET card = replace(card, '0', '1')",
            "heart, constant, measure; heart, local, measure; ",
        ),
        ("UPDATE study SET text = 'nothing'", ""),
    ],
)
def test_what_is_damaged_is_named_and_made_again(
    whole: Path, folder: Path, plan: Plan, statement: str, names: str
) -> None:
    expected = rows(whole)
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute(statement)
    db.close()
    told = work(plan, folder)
    assert rows(folder) == expected
    assert len(told) == bool(names)
    if names:
        assert f"{folder / FILE} is damaged: " in told[0]
        assert names in told[0]
        assert told[0].endswith("is recomputed")
    assert work(plan, folder) == []


def test_a_study_whose_results_are_damaged_reports_the_others(whole: Path, folder: Path, plan: Plan) -> None:
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute("UPDATE units SET result = replace(result, '0', '1') WHERE method = 'ditto' AND seed = 1")
    db.close()
    with pytest.warns(
        PluresWarning,
        match=r"study\.db is damaged: 1 of its rows, and what depends on them, are left out; start the study",
    ):
        study = Study(folder)
    assert len(study.runs()) == len(Study(whole).runs()) - 1
    assert [method.name for method in study.comparisons()[0].methods] == list(BASELINES)
    study.close()
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute("UPDATE cells SET metric = replace(metric, 'a', 'b')")
    db.close()
    with pytest.warns(PluresWarning, match=r"2 of its rows, and what depends on them, are left out"):
        study = Study(folder)
    assert study.comparisons() == []
    assert study.frame().empty
    study.close()


def test_pages_that_do_not_hold_together_are_refused_and_what_can_be_read_is_kept(
    whole: Path, folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, content = sqlite3.connect(folder / FILE), bytearray((folder / FILE).read_bytes())
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_units_1'").fetchone()
    db.close()
    content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    (folder / FILE).write_bytes(content)
    with pytest.raises(
        PluresError, match=r"study\.db is .*damaged.*`plures study FILE --recover`, which keeps"
    ) as caught:
        work(plan, folder)
    assert said(caught.value, folder)
    shutil.copytree(folder, folder.with_name("command"))
    told = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=told, width=300))
    arguments = ["study", str(plan.source.folder / plan.source.file), "--out", str(folder.with_name("command"))]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, PluresError)
    assert said(refused, folder.with_name("command"))
    assert CliRunner().invoke(app, [*arguments, "--recover", "--plan"]).exit_code == 0
    assert told.getvalue().startswith(f"{len(plan.measures) + len(plan.units)} results could be read")
    assert recover(folder) == len(plan.measures) + len(plan.units), "the table is whole, its index is not"
    assert (folder / f"{FILE}.damaged").read_bytes() == bytes(content)
    assert work(plan, folder) == []
    assert rows(folder) == rows(whole)


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_leftovers_of_the_log_are_right_or_named(whole: Path, tmp_path: Path, plan: Plan, end: str) -> None:
    """A killed process leaves what it wrote in the log beside the file."""
    source = Store(whole)
    told = kept(source, plan)
    store = Store(tmp_path / "one")
    source.db.backup(store.db)
    store.db.execute("UPDATE units SET claims = claims + 1")
    there = {name: (tmp_path / "one" / name).read_bytes() for name in (FILE, f"{FILE}-wal", f"{FILE}-shm")}
    store.close()
    source.close()
    folder = tmp_path / "copy"
    for what, harm in harmed(there[f"{FILE}{end}"], flips=40):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in there.items():
            (folder / name).write_bytes(harm if name == f"{FILE}{end}" else content)
        store, refused = tried(lambda: Store(folder))
        if store is None:
            assert refused is not None
            assert said(refused, folder), what
            continue
        now = kept(store, plan)
        assert {name: told[name] for name in now} == now, what
        store.close()


def test_a_study_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("CREATE TABLE study (id INTEGER PRIMARY KEY, text, file, folder, search, version)")
    db.close()
    with pytest.raises(PluresError, match=r"study\.db is of an earlier version of plures: choose another folder"):
        Store(tmp_path)


# A full disk ----------------------------------------------------------------------------------------------------


def test_a_database_that_cannot_grow_is_one_sentence_and_goes_on_when_there_is_room(
    whole: Path, plan: Plan, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages + 2}")
    told: list[str] = []
    with pytest.raises(PluresError, match=r"cannot write .*study\.db: database or disk is full: free some space") as e:
        conduct(plan, store, plan.units, lambda event: told.append(event.what))
    assert said(e.value, tmp_path)
    assert "failed" not in told
    store.close()
    assert work(plan, tmp_path) == []
    assert rows(tmp_path) == rows(whole)


def test_a_full_disk_stops_the_study_with_one_sentence(
    whole: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not reported as a failure of each unit in turn."""
    store = Store(tmp_path)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    save = plures.files.save_file

    def fills(*arguments: Any) -> None:
        save(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plures.files, "save_file", fills)
    told: list[str] = []
    with pytest.raises(PluresError, match=r"heart, local, seed 0: cannot write .*free some space.*No space left") as e:
        conduct(plan, store, plan.units, lambda event: told.append(event.what))
    assert said(e.value, tmp_path)
    assert "failed" not in told
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == []
    store.close()
    monkeypatch.undo()
    assert work(plan, tmp_path) == []
    assert rows(tmp_path) == rows(whole)
