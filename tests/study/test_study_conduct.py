"""Processes at work: killed at any moment, two at once, stopped by Ctrl-C; the results are the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from study_worker import SMALL, rows, work

from plures.evaluate.results import BASELINES
from plures.study import Event, Store, Study, begin, conduct, plan_of, read_study
from plures.study.cells import Loaded
from plures.study.plan import Unit
from plures.study.work import Tell, Workspace

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["study_worker", "plures.study.view"])


def worker(file: Path, folder: Path) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=work, args=(str(file), str(folder)))
    process.start()
    return process


def claims(folder: Path) -> list[int]:
    db = sqlite3.connect(folder / "study.db")
    found = [count for (count,) in db.execute("SELECT claims FROM units")]
    db.close()
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> Path:
    """A study that ran undisturbed."""
    folder = file.parent / "whole"
    process = worker(file, folder)
    process.join()
    assert process.exitcode == 0
    assert set(claims(folder)) == {1}
    return folder


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_is_not(
    file: Path, whole: Path, tmp_path: Path
) -> None:
    kills, chance = 0, random.Random(7)
    for _ in range(40):
        process = worker(file, tmp_path)
        if kills < 8:
            process.join(0.25 + chance.random())
        else:
            process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode is None
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills >= 4
    assert rows(tmp_path) == rows(whole)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_two_processes_divide_the_work(file: Path, whole: Path, tmp_path: Path) -> None:
    pair = [worker(file, tmp_path) for _ in range(2)]
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert set(claims(tmp_path)) == {1}
    assert rows(tmp_path) == rows(whole)


def test_a_killed_process_beside_a_living_one(file: Path, whole: Path, tmp_path: Path) -> None:
    pair = [worker(file, tmp_path) for _ in range(2)]
    pair[0].join(1.2)
    assert pair[0].pid is not None
    os.kill(pair[0].pid, signal.SIGKILL)
    pair[1].join()
    assert pair[1].exitcode == 0
    assert rows(tmp_path) == rows(whole)


def test_ctrl_c_stops_after_the_round_and_the_next_start_goes_on(file: Path, whole: Path, tmp_path: Path) -> None:
    plan, store = plan_of(read_study(file), "optuna"), Store(tmp_path)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    seen: list[Event] = []

    def press(event: Event) -> None:
        seen.append(event)
        if event.what == "going" and event.unit is not None and event.unit.kind == "seed" and event.round == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        conduct(plan, store, plan.units, press)
    assert seen[-1].round == 3
    stopped = seen[-1].unit
    assert stopped is not None
    assert store.states()[stopped.id] == "open"
    assert (tmp_path / "checkpoints" / f"{stopped.id}.safetensors").exists()
    seen.clear()
    conduct(plan, store, plan.units, seen.append)
    going = [event.round for event in seen if event.what == "going" and event.unit is stopped]
    assert going == [4, 5, 6]
    assert rows(tmp_path) == rows(whole)


def test_a_process_that_lost_its_unit_writes_nothing(file: Path, whole: Path, tmp_path: Path) -> None:
    plan, store, other = plan_of(read_study(file), "optuna"), Store(tmp_path), Store(tmp_path)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    stolen = next(unit for unit in plan.units if unit.candidate.label == "local" and unit.kind == "seed")
    ends = list[tuple[str, str]]()

    def steal(event: Event) -> None:
        if event.unit is stolen and event.round == 2 and not ends:
            other.db.execute("UPDATE units SET owner = 'a ghost' WHERE id = ?", (stolen.id,))
        if event.unit is stolen and event.what in ("done", "lost"):
            ends.append((event.what, str(store.states()[stolen.id])))

    conduct(plan, store, plan.units, steal)
    assert ends == [("lost", "claimed"), ("done", "done")]
    assert rows(tmp_path) == rows(whole)


def test_one_fault_does_not_end_the_study(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = plan_of(read_study(file), "optuna"), Store(tmp_path)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    fine = Workspace._final

    def broken(bench: Workspace, unit: Unit, loaded: Loaded, tell: Tell) -> str:
        if unit.candidate.label == "ditto" and unit.seed == 1:
            raise ArithmeticError("overflow")
        return fine(bench, unit, loaded, tell)

    monkeypatch.setattr(Workspace, "_final", broken)
    conduct(plan, store, plan.units, lambda event: None)
    failed = store.failures(plan.units)
    assert [(unit.candidate.label, unit.seed, message) for unit, message in failed] == [
        ("ditto", 1, "ArithmeticError: overflow")
    ]
    assert [method.name for method in Study(tmp_path).comparisons()[0].methods] == list(BASELINES)
    monkeypatch.setattr(Workspace, "_final", fine)
    begin(plan, store)
    conduct(plan, store, plan.units, lambda event: None)
    assert [method.name for method in Study(tmp_path).comparisons()[0].methods][-1] == "ditto"
