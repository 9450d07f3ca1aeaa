"""Remaining work: runs, time, memory, progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

from plures.evaluate.tuning import readings
from plures.study.plan import Cell, Plan, Unit
from plures.study.search import planned
from plures.study.store import Store
from plures.study.work import Timing


@dataclass(frozen=True)
class Ahead:
    """Remaining work of a study.

    Attributes:
        cells: number of cells.
        methods: number of methods, baselines included.
        trials: most trials of all tuning: some may be stopped early or skipped.
        runs: final runs.
        done_trials: trials that are done, or belong to finished tuning.
        done_runs: final runs that are done.
        seconds: expected seconds of one process for the rest, a rough estimate; NaN before anything was measured.
        memory: peak bytes of a process while a round of each method was measured.
        device_memory: the same on the accelerator.
        by_cell: title of a cell to its final runs, those done, and the seconds left.
    """

    cells: int
    methods: int
    trials: int
    runs: int
    done_trials: int
    done_runs: int
    seconds: float
    memory: int
    device_memory: int
    by_cell: dict[str, tuple[int, int, float]]


def expected(plan: Plan, timings: dict[str, Timing], unit: Unit) -> float:
    """Expected seconds of a unit; NaN if its rounds were not measured."""
    timing = timings.get(plan.measured_by(unit))
    if timing is None:
        return math.nan
    if unit.kind == "seed":
        trained = unit.rounds if unit.candidate.leader is None else 0
        return timing.seconds(trained, math.ceil(unit.rounds / unit.cell.every) + 3)
    tuning = plan.source.document.tuning
    every = tuning.every or readings(tuning.rounds)
    trials = planned(unit.candidate, tuning, plan.search)
    return trials * timing.seconds(tuning.rounds, math.ceil(tuning.rounds / every))


def timings_of(plan: Plan, store: Store) -> dict[str, Timing]:
    """All measured timings."""
    results = store.results("measure")
    return {unit.id: Timing.model_validate(results[unit.id][0]) for unit in plan.measures if unit.id in results}


def ahead(plan: Plan, store: Store) -> Ahead:
    """Remaining work, from the database."""
    timings, states, tuning = timings_of(plan, store), store.states(), plan.source.document.tuning
    done = {unit.id for unit in plan.units if states.get(unit.id) == "done"}
    tunings = [unit for unit in plan.units if unit.kind == "tuning"]
    counts = {unit.id: planned(unit.candidate, tuning, plan.search) for unit in tunings}
    kept = {unit.id: counts[unit.id] if unit.id in done else len(store.trials(unit.id)) for unit in tunings}
    left = {unit.id: expected(plan, timings, unit) * _rest(unit, done, kept, counts) for unit in plan.units}

    def of(cell: Cell) -> tuple[int, int, float]:
        units = [unit for unit in plan.units if unit.cell is cell]
        runs = [unit for unit in units if unit.kind == "seed"]
        return len(runs), sum(unit.id in done for unit in runs), sum(left[unit.id] for unit in units)

    by_cell = {cell.title: of(cell) for cell in plan.cells}
    return Ahead(
        cells=len(plan.cells),
        methods=len(plan.candidates),
        trials=sum(counts.values()),
        runs=sum(runs for runs, _, _ in by_cell.values()),
        done_trials=sum(kept.values()),
        done_runs=sum(there for _, there, _ in by_cell.values()),
        seconds=sum(left.values()),
        memory=max((timing.memory for timing in timings.values()), default=0),
        device_memory=max((timing.device_memory for timing in timings.values()), default=0),
        by_cell=by_cell,
    )


def _rest(unit: Unit, done: set[str], kept: dict[str, int], counts: dict[str, int]) -> float:
    """The remaining share of a unit."""
    if unit.id in done:
        return 0.0
    return 1 - kept[unit.id] / counts[unit.id] if unit.kind == "tuning" else 1.0


def duration(seconds: float) -> str:
    """Seconds as text: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
