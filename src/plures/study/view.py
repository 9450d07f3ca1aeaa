"""Progress of a study's processes, live in a terminal or as plain lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from plures.evaluate.results import MethodResult, MetricCard
from plures.study.conduct import Event, Watch
from plures.study.estimate import Ahead, duration, expected, timings_of
from plures.study.plan import Cell, Plan, Unit
from plures.study.store import Store

POLL_SECONDS = 1.0
"""Seconds between reads of the database."""
LIVING_SECONDS = 10.0
"""Seconds since its last heartbeat for which a process counts as working."""
SHOWN = 12
"""Most cells in the live view."""


def plan_table(title: str, known: Ahead) -> RenderableType:
    """The plan, with progress and estimated time."""
    table = Table("cell", "runs", "done", "left, about", title=title, title_justify="left")
    for cell, (runs, done, seconds) in known.by_cell.items():
        table.add_row(Text(cell), str(runs), str(done), duration(seconds))
    memory = f"{known.memory / 2**30:.1f} GiB"
    if known.device_memory:
        memory += f" and {known.device_memory / 2**30:.1f} GiB on the accelerator"
    text = (
        f"{known.cells} cells x {known.methods} methods: {known.trials} trials of tuning at most "
        f"({known.done_trials} done) and {known.runs} final runs ({known.done_runs} done)\n"
        f"time left for one process: about {duration(known.seconds)}; memory of a process: about {memory}\n"
        "Both come from one or two rounds of each method on each cell: a rough estimate, easily wrong by half."
    )
    return Group(table, Text(text))


@dataclass
class View:
    """State of the live view.

    Attributes:
        plan: the study.
        store: its database.
        event: this process's last event.
        begun: when the view began.
        unit_begun: when the current unit began.
        rounds: rounds of the current unit so far.
        looked: when the database was last read.
        shown: the states read then.
        known: validation of finished runs.
    """

    plan: Plan
    store: Store
    event: Event | None = None
    begun: float = field(default_factory=time.monotonic)
    unit_begun: float = 0.0
    rounds: int = 0
    looked: float = -math.inf
    shown: RenderableType = ""
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.timings = timings_of(self.plan, self.store)
        self.done_before = self._done()

    def note(self, event: Event) -> None:
        """Record an event of the process."""
        if event.what == "started":
            self.unit_begun, self.rounds = time.monotonic(), 0
        if event.what == "going":
            self.rounds += 1
        self.event = event

    def __rich__(self) -> RenderableType:
        if time.monotonic() - self.looked >= POLL_SECONDS:
            self.shown, self.looked = self._draw(), time.monotonic()
        return Group(self._now(), self.shown)

    def _done(self) -> set[str]:
        states = self.store.states()
        return {unit.id for unit in self.plan.units if states[unit.id] == "done"}

    def _now(self) -> Text:
        """This process."""
        event = self.event
        if event is None:
            return Text("starting")
        if event.unit is None:
            return Text("waiting for other processes", style="yellow")
        text = f"{event.unit.name}"
        if event.what == "going":
            rate = self.rounds / max(time.monotonic() - self.unit_begun, 1e-9)
            text += (
                f": round {event.round}/{event.rounds}"
                if event.unit.kind == "seed"
                else f": {self.rounds} rounds of trials"
            )
            text += f", {rate:.1f} rounds/s, validation {event.validation:.4g}"
        return Text(text, style="bold")

    def left(self, done: set[str], workers: int) -> float:
        """Seconds left: the estimate for the rest, scaled by how far estimates were off so far."""
        values = {unit.id: expected(self.plan, self.timings, unit) for unit in self.plan.units}
        fresh = done - self.done_before
        spent = sum(seconds for id, seconds in self.store.spent().items() if id in fresh)
        foreseen = sum(values[id] for id in fresh)
        ratio = spent / foreseen if fresh and foreseen > 0 else 1.0
        return ratio * sum(seconds for id, seconds in values.items() if id not in done) / max(workers, 1)

    def _draw(self) -> RenderableType:
        done, others = self._done(), self.store.living(LIVING_SECONDS)
        failed = len(self.store.failures(self.plan.units))
        total = len(self.plan.units)
        head = Text(
            f"{self.plan.source.document.name}: {len(done)}/{total} units done"
            + (f", {failed} failed" if failed else "")
            + f", {len(others)} processes, {duration(time.monotonic() - self.begun)} so far, "
            f"about {duration(self.left(done, len(others)))} left"
        )
        table = Table("cell", "done", "best so far", "validation", box=None, pad_edge=False)
        open_cells = [cell for cell in self.plan.cells if self._count(cell, done)[0] < self._count(cell, done)[1]]
        for cell in (open_cells or list(self.plan.cells))[:SHOWN]:
            there, all_of = self._count(cell, done)
            table.add_row(Text(cell.title), f"{there}/{all_of}", *self._best(cell, done))
        rest = Text("\n".join(self._other(doing.unit, doing.doing) for doing in others if doing.unit), style="dim")
        return Group(head, table, rest)

    def _other(self, unit: str | None, doing: str) -> str:
        known = self.plan.by_id.get(unit or "")
        return f"running: {known.name if known else unit} {doing}"

    def _count(self, cell: Cell, done: set[str]) -> tuple[int, int]:
        units = [unit for unit in self.plan.units if unit.cell is cell]
        return sum(unit.id in done for unit in units), len(units)

    def _validation(self, unit: Unit) -> float:
        """Validation of a finished run at its chosen round."""
        if unit.id not in self.known:
            result = self.store.result(unit.id)
            if result is None:  # damaged since this process began
                return math.nan
            run = MethodResult.model_validate(result).seeds[0]
            curve = {point.round: point.validation for point in run.curve}
            self.known[unit.id] = curve.get(run.chosen_round, math.nan)
        return self.known[unit.id]

    def _best(self, cell: Cell, done: set[str]) -> tuple[str, str]:
        """The method whose finished runs have the best mean validation so far, and that mean."""
        row = self.store.cell(cell.key)
        if row is None:
            return "", ""
        metric, scores = MetricCard.model_validate_json(row["metric"]), dict[str, list[float]]()
        for unit in self.plan.units:
            if unit.cell is cell and unit.kind == "seed" and unit.id in done:
                scores.setdefault(unit.candidate.label, []).append(self._validation(unit))
        means = {label: sum(values) / len(values) for label, values in scores.items()}
        known = {label: mean for label, mean in means.items() if not math.isnan(mean)}
        if not known:
            return "", ""
        label = max(known, key=lambda name: known[name] * (1 if metric.higher else -1))
        return label, f"{metric.title} {known[label]:.4g}"


@contextmanager
def watching(plan: Plan, store: Store, console: Console) -> Iterator[Watch]:
    """A live view in a terminal, plain lines elsewhere; yields a function to call with every event."""
    if console.is_terminal:
        own = Store(store.folder, shared=True)  # read by the thread that draws
        view = View(plan, own)
        try:
            with Live(view, console=console, refresh_per_second=4, transient=True):
                yield view.note
        finally:
            own.close()
        return

    view = View(plan, store)

    def left(done: set[str]) -> str:
        seconds = view.left(done, len(store.living(LIVING_SECONDS)))
        return f", about {duration(seconds)} left" if seconds > 0 else ""

    yield lines(store, plan.units, console, left)


def lines(
    store: Store, units: Sequence[Unit], console: Console, left: Callable[[set[str]], str] = lambda _: ""
) -> Watch:
    """Plain lines when units end, for a pipe or a log; ``left`` describes the remaining time when some are done."""

    def tell(event: Event) -> None:
        if event.what in ("done", "failed", "lost") and event.unit is not None:
            states = store.states()
            done = {unit.id for unit in units if states[unit.id] == "done"}
            why = f": {event.message}" if event.message else ""
            console.print(
                f"{event.unit.name}: {event.what}{why} ({len(done)}/{len(units)}{left(done)})",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    return tell
