"""Without a terminal, progress is printed as lines, with the time left."""

from __future__ import annotations

import inspect
import io

import pytest
import typer
from rich.console import Console

import plures.cli.progress as module
from plures.cli import app
from plures.cli.progress import Lines, progress


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    told = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=told, width=20))
    return told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_each_line_tells_what_is_left_at_the_pace_so_far(page: io.StringIO, clock: list[float]) -> None:
    with progress("comparing", 10) as update:
        update(0, "begun")
        clock[0] += 20
        update(1, "a round of the first", line=False)
        update(2, "the first of all runs, longer than the page is wide")
        clock[0] += 70
        update(5, "the second")
        update(10, "the last")
    assert page.getvalue().splitlines() == [
        "comparing: begun (0 % done)",
        "comparing: the first of all runs, longer than the page is wide (20 % done, about 80 s left)",
        "comparing: the second (50 % done, about 90 s left)",
        "comparing: the last (100 % done)",
    ]
    assert "\r" not in page.getvalue()


def test_what_an_earlier_command_did_says_nothing_of_the_pace(page: io.StringIO, clock: list[float]) -> None:
    with progress("comparing", 10) as update:
        update(8, "done before", skipped=True)
        clock[0] += 30
        update(9, "new")
    assert page.getvalue().splitlines() == [
        "comparing: done before (80 % done)",
        "comparing: new (90 % done, about 30 s left)",
    ]


def test_what_prepares_says_nothing_of_the_pace(page: io.StringIO, clock: list[float]) -> None:
    with progress("comparing", 10) as update:
        clock[0] += 500
        update(0, "the network", skipped=True)
        clock[0] += 20
        update(0, "the network", skipped=True)  # asked again, it says the same
        clock[0] += 10
        update(1, "new")
    assert page.getvalue().splitlines()[1] == "comparing: new (10 % done, about 4 min left)"  # 9 times 30 s


def test_no_line_comes_twice(page: io.StringIO) -> None:
    lines = Lines(Console(file=page), "polled", 3)
    for _ in range(3):
        lines(1, "round 1")
    assert page.getvalue().count("round 1") == 1


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=told, force_terminal=True, width=80))
    with progress("comparing", 2) as update:
        assert not isinstance(update, Lines)
        update(1, "halfway", line=True)
    assert "about" not in told.getvalue()


def test_every_command_that_tells_its_progress_can_be_quiet() -> None:
    commands = {**typer.main.get_command(app).commands}  # type: ignore[attr-defined]
    commands |= {f"deploy {name}": one for name, one in commands.pop("deploy").commands.items()}
    quiet = {name for name, one in commands.items() if any(p.name == "quiet" for p in one.params)}
    telling = {name for name, one in commands.items() if "progress(" in inspect.getsource(inspect.unwrap(one.callback))}
    assert quiet == telling | {"audit", "study"}
