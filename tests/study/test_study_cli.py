"""The command: it plans, runs, reports, stops and resumes."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from study_worker import SMALL
from typer.testing import CliRunner

import plures.cli.study as module
import plures.study.view as looks
from plures.cli.common import app
from plures.errors import PluresError
from plures.study import Event, Store, Study, begin, plan_of, read_study
from plures.study.estimate import duration
from plures.study.view import View, watching

RUNNER = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(SMALL.replace("rounds = 6", "rounds = 2").replace("trials = 3", "trials = 2"))
    return path


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the command prints, on a wide page."""
    page = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=page, width=140))
    return page


def test_the_plan_is_told_and_nothing_is_trained(file: Path, tmp_path: Path, wide: io.StringIO) -> None:
    out = tmp_path / "out"
    assert RUNNER.invoke(app, ["study", str(file), "--plan", "--out", str(out)]).exit_code == 0
    told = wide.getvalue()
    assert "1 cells x 6 methods: 8 trials of tuning at most (0 done) and 12 final runs (0 done)" in told
    assert "rough estimate" in told
    assert re.search(r"time left for one process: about \d+ s; memory of a process: about \d\.\d GiB", told)
    known = Study(out).ahead()
    assert (known.runs, known.done_runs, known.done_trials) == (12, 0, 0)
    assert known.seconds > 0
    assert Study(out).comparisons() == []


def test_a_study_runs_and_a_second_start_has_nothing_to_do(file: Path, tmp_path: Path, wide: io.StringIO) -> None:
    out = tmp_path / "out"
    assert RUNNER.invoke(app, ["study", str(file), "--out", str(out)]).exit_code == 0
    told = wide.getvalue()
    done = re.findall(r"^heart, (\w+), (tuning|seed \d): done \((\d+)/16(?:, about \d+ s left)?\)$", told, re.MULTILINE)
    assert told.count(" left)\n") == 15
    assert re.findall(r"^heart, (\w+), measure: done \((\d)/5\)$", told, re.MULTILINE)[-1] == ("ditto", "5")
    assert "\r" not in told
    assert [int(number) for _, _, number in done] == list(range(1, 17))
    assert done[:3] == [("constant", "seed 0", "1"), ("constant", "seed 1", "2"), ("local", "tuning", "3")]
    assert [what[:2] for what in done[6:10]] == [
        *(("fedavg", "seed 0"), ("intercept", "seed 0"), ("fedavg", "seed 1"), ("intercept", "seed 1"))
    ]
    assert "12 runs of 1 cells are in" in told
    wide.seek(0)
    wide.truncate()
    assert RUNNER.invoke(app, ["study", str(file), "--out", str(out)]).exit_code == 0
    again = wide.getvalue()
    assert "(12 done)" in again
    assert ": done (" not in again
    assert Study(out).ahead().seconds == 0
    wide.seek(0)
    wide.truncate()
    assert RUNNER.invoke(app, ["study", str(file), "--out", str(out), "--quiet"]).exit_code == 0
    assert [line.split()[0] for line in wide.getvalue().splitlines()] == ["12", "report:", "in"]  # results alone


def test_a_method_that_does_not_fit_is_refused_before_anything_is_trained(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text().replace('["ditto"]', '["ditto",\n "fedrep"]'))  # logistic has no head
    result = RUNNER.invoke(app, ["study", str(file), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, PluresError)
    assert str(result.exception).startswith("study.toml, line 6: methods[1]: fedrep on heart: ")
    assert len(Study(tmp_path / "out").trials()) == 0


def test_processes_divide_the_work(
    file: Path, tmp_path: Path, wide: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 12"))
    start = "import sys, plures.cli.study, plures.cli; plures.cli.main()"
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", start, "study"))
    out = tmp_path / "out"
    arguments = ["study", str(file), "--out", str(out), "--processes", "2"]
    assert RUNNER.invoke(app, arguments).exit_code == 0
    store, told = Store(out), wide.getvalue()
    assert [count for (count,) in store.db.execute("SELECT claims FROM units")] == [1] * 21
    assert Study(out).ahead().done_runs == 12
    mine = len(re.findall(r": done \(\d+/16", told))
    assert 1 <= mine <= 16
    assert store.living(3600) == []


def test_ctrl_c_says_how_to_go_on(
    file: Path, tmp_path: Path, wide: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "conduct", pressed)
    result = RUNNER.invoke(app, ["study", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "the same command resumes from the last finished round" in wide.getvalue()


def test_failures_are_told_at_the_end(file: Path, tmp_path: Path) -> None:
    plan, store = plan_of(read_study(file), "optuna"), Store(tmp_path / "out")
    begin(plan, store)
    page = io.StringIO()
    with watching(plan, store, Console(file=page, width=60)) as watch:
        watch(Event("started", plan.units[0]))
        watch(Event("going", plan.units[0], 1, 2, 0.5))
        watch(Event("failed", plan.units[0], message="x" * 100))
    assert page.getvalue() == f"heart, constant, seed 0: failed: {'x' * 100} (0/16)\n"


def test_the_live_view_tells_what_runs_and_what_is_best(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    RUNNER.invoke(app, ["study", str(file), "--out", str(out)])
    plan, store = plan_of(read_study(file), "optuna"), Store(out)
    view = View(plan, store)
    unit = next(unit for unit in plan.units if unit.candidate.label == "local" and unit.kind == "seed")
    view.note(Event("started", unit))
    view.note(Event("going", unit, 1, 2, 0.75))
    page = io.StringIO()
    Console(file=page, width=140).print(view)
    told = page.getvalue()
    assert re.search(r"heart, local, seed 0: round 1/2, [\d.]+ rounds/s, validation 0.75", told)
    assert "small: 16/16 units done" in told
    runs = Study(out).runs()
    means = runs.groupby("method")["validation"].mean()
    shown = re.search(r"heart\s+16/16\s+(\w+)\s+accuracy ([\d.]+)", told)
    assert shown is not None
    assert means[shown[1]] == means.max()
    assert float(shown[2]) == pytest.approx(means.max(), abs=1e-4)


def test_the_time_left_follows_how_far_expectations_were_off(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    RUNNER.invoke(app, ["study", str(file), "--plan", "--out", str(out)])
    plan, store = plan_of(read_study(file), "optuna"), Store(out)
    view, known = View(plan, store), Study(out).ahead()
    assert view.left(set(), 1) == pytest.approx(known.seconds)
    assert view.left(set(), 2) == pytest.approx(known.seconds / 2)
    owner, first = store.enter(), plan.units[0]
    assert store.claim([first], owner, 60) is first
    store.finish(first, owner, "{}", 1000.0)
    rest = known.seconds - view.left(set(), 1) + Study(out).ahead().seconds
    share = known.seconds - rest
    assert view.left({first.id}, 1) == pytest.approx(1000.0 / share * rest)


def test_durations_in_words() -> None:
    words = [duration(seconds) for seconds in (0.4, 99, 100, 3600, 6000, 11_100, float("nan"))]
    assert words == ["0 s", "99 s", "2 min", "60 min", "1 h 40 min", "3 h 05 min", "unknown"]


def test_a_terminal_is_drawn_by_a_thread_of_its_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "POLL_SECONDS", 0.0)
    plan, store = plan_of(read_study(file), "optuna"), Store(tmp_path / "out")
    begin(plan, store)
    page, drawn = io.StringIO(), list[str]()
    look = View._draw

    def noted(view: View) -> object:
        found = look(view)
        drawn.append(threading.current_thread().name)
        return found

    monkeypatch.setattr(View, "_draw", noted)
    with watching(plan, store, Console(file=page, width=100, force_terminal=True)) as watch:
        watch(Event("started", plan.units[0]))
        until = time.monotonic() + 120
        while len(set(drawn)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        watch(Event("waiting"))
    assert len(set(drawn)) == 2
    assert "heart, constant, seed 0" in page.getvalue()
