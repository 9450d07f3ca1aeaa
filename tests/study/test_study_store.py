"""Claims: one owner at a time, given back, taken over from the dead."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from plures.errors import PluresError
from plures.study import Plan, Store, Study, begin, parse_study, plan_of
from plures.study.store import LostError, Tried, born

TEXT = 'name = "s"\nseeds = 2\ndata = ["heart"]\n'


@pytest.fixture
def plan() -> Plan:
    return plan_of(parse_study(TEXT, "study.toml", Path()), "grid")


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    store = Store(tmp_path)
    begin(plan, store)
    return store


def test_a_unit_has_one_owner_and_waits_for_what_it_needs(plan: Plan, store: Store) -> None:
    one, two = store.enter(), store.enter()
    units = [unit for unit in plan.units if unit.candidate.label != "constant"]
    tuning, seed, _, other, *_ = units
    assert (tuning.kind, seed.needs, other.kind) == ("tuning", tuning.id, "tuning")
    assert store.claim(units, one, 60) is tuning
    assert store.claim(units, two, 60) is other
    with pytest.raises(LostError):
        store.finish(tuning, two, "{}", 1.0)
    store.finish(tuning, one, '{"a": 1}', 1.0)
    assert store.result(tuning.id) == {"a": 1}
    assert store.claim(units, two, 60) is seed
    with pytest.raises(LostError):
        store.finish(tuning, one, '{"a": 2}', 1.0)
    assert store.result(tuning.id) == {"a": 1}


def test_who_leaves_gives_back_what_it_has(plan: Plan, store: Store) -> None:
    one, two = store.enter(), store.enter()
    unit = store.claim(plan.units, one, 60)
    store.leave(one)
    assert store.claim(plan.units, two, 60) is unit


def test_a_lease_that_is_over_is_open_and_a_beat_renews_it(plan: Plan, store: Store) -> None:
    one, two = store.enter(), store.enter()
    unit = plan.units[0]
    assert store.claim([unit], one, -1.0) is unit
    assert store.beat(one, unit.id, 60, "round 1")
    assert store.claim([unit], two, 60) is None
    assert [doing.doing for doing in store.living(60) if doing.owner == one] == ["round 1"]
    assert store.beat(one, unit.id, -1.0, "")
    assert store.claim([unit], two, 60) is unit
    assert not store.beat(one, unit.id, 60, "")  # it has lost its unit
    tried = Tried(0, "finished", {"lr": 0.1}, {1: 0.5}, 0.5, 0.1, {})
    with pytest.raises(LostError):
        store.try_out(unit, one, tried)
    store.try_out(unit, two, tried)
    assert store.trials(unit.id) == [tried]


def test_a_dead_process_is_known_at_once(plan: Plan, store: Store) -> None:
    assert born(os.getpid()) == born(os.getpid()) != ""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = born(child.pid)
    assert alive != ""
    unit, ghost, me = plan.units[0], store.enter(), store.enter()
    store.db.execute("UPDATE processes SET pid = ?, born = ? WHERE owner = ?", (child.pid, alive, ghost))
    assert store.claim([unit], ghost, 3600) is unit
    assert store.claim([unit], me, 60) is None
    child.kill()
    while born(child.pid):  # killed, and not yet buried by its parent
        pass
    assert store.claim([unit], me, 60) is unit
    child.wait()
    child.stdin.close()  # type: ignore[union-attr]


def test_failures_are_told_and_opened_again(plan: Plan, store: Store) -> None:
    owner = store.enter()
    unit = next(unit for unit in plan.units if unit.candidate.label == "fedavg" and unit.kind == "tuning")
    stuck = {other.id for other in plan.units if other.candidate.label in ("fedavg", "intercept")}
    assert store.claim([unit], owner, 60) is unit
    store.fail(unit, owner, "no room")
    assert store.failures(plan.units) == [(unit, "no room")]
    assert len(stuck) == 5
    assert not stuck & {other.id for other in store.unfinished(plan.units)}
    assert {other.candidate.label for other in store.unfinished(plan.units)} == {"constant", "local", "fedavg_ft"}
    begin(plan, store)
    assert store.claim([unit], owner, 60) is unit


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluresError, match="no study in"):
        Study(tmp_path)
    Store(tmp_path).close()
    with pytest.raises(PluresError, match="was never started"):
        Study(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.db").write_text("not a database, but long enough to be read as one" * 50)
    with pytest.raises(PluresError, match="is not the database of a study"):
        Study(tmp_path / "bad")


def test_the_database_survives_a_torn_transaction(plan: Plan, store: Store) -> None:
    def torn() -> None:
        with store._transaction():
            store.db.execute("UPDATE units SET state = 'done'")
            store.db.execute("UPDATE units SET state = 'nonsense'")

    with pytest.raises(sqlite3.IntegrityError):
        torn()
    assert set(store.states().values()) == {"open"}
