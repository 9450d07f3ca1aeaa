"""Progress of a command: a bar in a terminal, lines in a pipe or a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from plures.cli.common import console
from plures.study.estimate import duration


class Update(Protocol):
    """Reports a command's progress.

    Args:
        done: amount of work done so far, of the total.
        text: description of the last step.
        line: whether the step gets a line of its own when the output is not a terminal.
        skipped: whether the step says nothing of the pace: an earlier, interrupted command did it, or it only prepares.
    """

    def __call__(self, done: float, text: str, *, line: bool = True, skipped: bool = False) -> None: ...


@dataclass
class Lines:
    """Progress as lines, each with the time left at the pace so far. Repeated texts are printed once.

    Attributes:
        console: console that the lines are printed to.
        description: beginning of each line.
        total: total amount of work.
        heard: time of the last step.
        spent: time of all steps that say something of the pace.
        done: amount of work done so far.
        worked: the part of it done by this command.
        last: the last line's text.
    """

    console: Console
    description: str
    total: float
    heard: float = field(default_factory=lambda: time.monotonic())
    spent: float = 0.0
    done: float = 0.0
    worked: float = 0.0
    last: str = ""

    def __call__(self, done: float, text: str, *, line: bool = True, skipped: bool = False) -> None:
        if done == self.done and text == self.last:
            return
        now = time.monotonic()
        if not skipped:
            self.worked += done - self.done
            self.spent += now - self.heard
        self.done, self.heard = done, now
        if not line or text == self.last:
            return
        self.last = text
        share = f"{100 * done / self.total:.0f} % done" if self.total else "done"
        if self.worked > 0 and done < self.total:
            share += f", about {duration(self.spent / self.worked * (self.total - done))} left"
        self.console.print(f"{self.description}: {text} ({share})", highlight=False, soft_wrap=True)


def silent(done: float, text: str, *, line: bool = True, skipped: bool = False) -> None:
    """Print no progress."""


class _Printed(logging.Handler):
    """Prints messages above the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), highlight=False, soft_wrap=True)


@contextmanager
def _decoding() -> Iterator[None]:
    """Print how far the data are decoded, which takes long the first time; with ``-v`` the log says it."""
    log = logging.getLogger("plures.decoded")
    if log.isEnabledFor(logging.INFO):
        yield
        return
    level, printed, log.propagate = log.level, _Printed(), False
    log.addHandler(printed)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(printed)
        log.setLevel(level)
        log.propagate = True


@contextmanager
def progress(description: str, total: float, *, quiet: bool = False) -> Iterator[Update]:
    """A progress bar in a terminal, lines elsewhere, nothing if ``quiet``. After Ctrl-C, says how to resume."""
    try:
        if quiet:
            yield silent
            return
        if not console.is_terminal:
            with _decoding():
                yield Lines(console, description, total)
            return
        words, text = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[text]"))
        columns = (SpinnerColumn(), words, BarColumn(), text)
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar, _decoding():
            task = bar.add_task(description, total=total, text="")

            def update(done: float, text: str, *, line: bool = True, skipped: bool = False) -> None:
                bar.update(task, completed=done, text=text)

            yield update
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes from the last finished round", style="yellow")
        raise typer.Exit(130) from None
