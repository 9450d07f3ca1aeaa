"""Do one unit of a study: time a round, tune a method, or make a final run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from plures.errors import PluresError
from plures.evaluate.callback import Callback
from plures.evaluate.compare import card, described, environment, refuse_unmeasured, saved_execution
from plures.evaluate.fit import finish, fit
from plures.evaluate.folder import RunFolder
from plures.evaluate.record import Result
from plures.evaluate.recording import Recording
from plures.evaluate.results import MetricCard, Trial
from plures.evaluate.sample import honest_clients
from plures.evaluate.scores import primary, score
from plures.evaluate.spec import RunSpec
from plures.evaluate.tuning import try_out
from plures.files import inside
from plures.run import Execution, Run
from plures.run.checkpoint import discard_damaged
from plures.run.machine import Machine
from plures.study.cells import Loaded, load_cell
from plures.study.plan import UNUSED, Cell, Plan, Unit
from plures.study.search import Behind, points, run_search
from plures.study.store import Store, Tried

Tell = Callable[[int, int, float], None]
"""Called with rounds done, total rounds and the last validation value."""

UNTIMED = ("clients_on_disk", "features", "processes", "ray")
"""Choices of an execution that each run makes."""


class Timing(Result):
    """A short measurement of a method on a cell.

    Attributes:
        execution: how its runs use the machine.
        setup: seconds to set up a run.
        round: seconds of a round.
        score: seconds to evaluate on the validation data once.
        memory: peak bytes of the process so far.
        device_memory: bytes taken on the accelerator.
    """

    execution: dict[str, Any]
    setup: float
    round: float
    score: float
    memory: int
    device_memory: int

    def seconds(self, rounds: int, readings: int) -> float:
        """Expected seconds of a run."""
        return self.setup + rounds * self.round + readings * self.score


class Chosen(Result):
    """The result of tuning a method on a cell.

    Attributes:
        setting: chosen learning rate and parameters.
        search: ``optuna``, ``random`` or ``grid``.
        finished: trials that ran to their end.
        pruned: trials that were stopped.
        repeated: trials that repeated an earlier one and were not run.
        seconds: wall time of all trials.
    """

    setting: dict[str, Any]
    search: str
    finished: int
    pruned: int
    repeated: int
    seconds: float


@dataclass
class Workspace:
    """The workspace of a process; caches the last loaded cell.

    Attributes:
        plan: the study.
        store: its database.
        owner: the name of this process in it.
        callbacks: called for every final run.
        ray: address of the Ray cluster that trains clients, if there is one.
        machine: what runs have measured on the machine.
        uncombined: for a cell and a method, why it does not take the cell's robust combination.
        recorded: the last run whose rounds others repeat, with its unit.
    """

    plan: Plan
    store: Store
    owner: str
    callbacks: Sequence[Callback] = ()
    ray: str | None = None
    loaded: Loaded | None = None
    machine: Machine = field(default_factory=Machine)
    uncombined: dict[tuple[str, str], str | None] = field(default_factory=dict)
    recorded: tuple[str, Recording] | None = None

    def at(self, cell: Cell) -> Loaded:
        """A cell in memory."""
        if self.loaded is None or self.loaded.cell is not cell:
            self.loaded = None
            loaded = load_cell(self.plan.source, cell)
            tuned = sum(unit.kind == "tuning" and unit.cell is cell for unit in self.plan.units)
            try:
                refuse_unmeasured(loaded.federation, tuned, "set tuning.trials = 0")
            except PluresError as error:
                raise self.plan.source.error(("data", cell.path[0]), str(error)) from error
            self.loaded = loaded
            execution = self.plan.source.document.execution
            threat, clients = loaded.spec.threat(), loaded.federation.clients
            hostile = [] if threat is None else threat.hostile(clients)
            judged = honest_clients(len(clients), hostile)
            described_as = card(loaded.federation, judged, hostile).model_copy(update={"name": cell.title})
            self.store.note_cell(
                cell,
                loaded.fingerprint,
                described_as.model_dump_json(),
                MetricCard.of(primary(loaded.federation)).model_dump_json(),
                environment(Execution(device=execution.device)),
            )
        return self.loaded

    def do(self, unit: Unit, tell: Tell) -> str:
        """Do a unit; its result as JSON."""
        loaded = self.at(unit.cell)
        match unit.kind:
            case "measure":
                return self._measure(unit, loaded).model_dump_json()
            case "tuning":
                return self._tune(unit, loaded, tell).model_dump_json()
            case "seed":
                return self._final(unit, loaded, tell)

    def _run(self, unit: Unit, loaded: Loaded, spec: RunSpec, execution: Execution, rounds: int | None = None) -> Run:
        machine, entry = self.machine.expecting(rounds or spec.rounds), unit.candidate.entry
        return spec.run(loaded.federation, execution, entry=entry, model=loaded.factory, machine=machine)

    def _spec(self, unit: Unit, loaded: Loaded, setting: Mapping[str, Any], **more: Any) -> RunSpec:
        """The run of a method with a setting, which may leave the learning rate to the document."""
        part = unit.candidate.part
        parameters = {**part.parameters, **{k: v for k, v in setting.items() if k != "lr"}}
        rate = setting.get("lr", unit.candidate.lr)
        own = {"method": part.name, "lr": rate, "parameters": parameters, "rounds": unit.rounds}
        spec = loaded.spec.model_copy(update=own | more)
        key = unit.cell.key, unit.candidate.label
        if key not in self.uncombined:
            self.uncombined[key] = spec.uncombined(unit.candidate.entry, loaded.federation, loaded.factory)
        return spec if self.uncombined[key] is None else spec.model_copy(update={"combine": None})

    def _settled(self, unit: Unit) -> Execution:
        """The execution that was measured for a method on a cell."""
        measured = self.store.result(self.plan.measured_by(unit))
        if measured is None:
            raise PluresError(f"{unit.name}: its rounds were not measured; start the study again")
        return Execution.from_dict(Timing.model_validate(measured).execution).alone(self.ray)

    def _measure(self, unit: Unit, loaded: Loaded) -> Timing:
        wanted = self.plan.source.document.execution
        candidate = unit.candidate
        rate = UNUSED if candidate.lr is None else candidate.lr
        spec = self._spec(unit, loaded, {"lr": rate})
        asked = Execution(wanted.backend, wanted.chunk, wanted.compile, device=wanted.device).alone(self.ray)
        tuning = self.plan.source.document.tuning
        shortest = min(spec.rounds, tuning.rounds) if tuning.trials else spec.rounds
        settled = self._run(unit, loaded, spec, asked, shortest).execution.alone(self.ray)
        begun = time.perf_counter()
        run = self._run(unit, loaded, spec, settled)
        setup, rounds = time.perf_counter() - begun, [run.step().seconds]
        if run.training.rounds > 1:
            rounds.append(run.step().seconds)
        begun = time.perf_counter()
        score(run, "validation")
        device = settled.torch_device
        return Timing(
            execution={key: value for key, value in asdict(settled).items() if key not in UNTIMED},
            setup=setup,
            round=min(rounds),
            score=time.perf_counter() - begun,
            memory=most_memory(),
            device_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        )

    def _tune(self, unit: Unit, loaded: Loaded, tell: Tell) -> Chosen:
        tuning, candidate, history = self.plan.source.document.tuning, unit.candidate, self.store.trials(unit.id)
        execution = self._settled(unit)

        def attempt(setting: dict[str, Any], behind: Behind) -> tuple[dict[int, float], bool, float]:
            begun, spec = time.perf_counter(), self._spec(unit, loaded, setting, rounds=tuning.rounds)
            fitted = try_out(
                self._run(unit, loaded, spec, execution),
                spec,
                unit.name,
                every=tuning.every,
                behind=lambda point: behind(point.round, point.validation),
                progress=lambda point: tell(
                    len(history) * tuning.rounds + point.round, tuning.rounds, point.validation
                ),
            )
            curve = {point.round: point.validation for point in fitted.curve}
            return curve, fitted.stopped, time.perf_counter() - begun

        setting = run_search(
            candidate,
            tuning,
            self.plan.search,
            history,
            attempt,
            lambda tried: self.store.try_out(unit, self.owner, tried),
            higher=primary(loaded.federation).higher,
            seed=unit.id,
        )
        spent = sum(tried.seconds for tried in history)
        return Chosen(setting=setting, search=self.plan.search, seconds=spent, **counts(history))

    def _final(self, unit: Unit, loaded: Loaded, tell: Tell) -> str:
        candidate, wanted = unit.candidate, self.plan.source.document
        setting, trials = self._chosen(unit)
        spec = self._spec(unit, loaded, setting, seed=unit.seed)
        checkpoint = self.checkpoint(unit)
        discard_damaged(checkpoint)
        execution = self._settled(unit)
        if checkpoint.exists():
            execution = saved_execution(checkpoint, execution)
        known = None if self.recorded is None or self.recorded[0] != unit.needs else self.recorded[1]
        repeated = known if known is not None and known.serves(spec) and not checkpoint.exists() else None
        run = self._run(unit, loaded, spec, execution if repeated is None else repeated.run.execution)
        recording = Recording(run, spec) if any(other.needs == unit.id for other in self.plan.units) else None
        fitted = fit(
            run,
            f"{unit.cell.title} {candidate.label}",
            every=unit.cell.every,
            patience=unit.cell.budget.patience,
            checkpoint=checkpoint if repeated is None else None,
            checkpoint_every=wanted.execution.checkpoint_every,
            progress=lambda point: tell(point.round, spec.rounds, point.validation),
            callbacks=[*self.callbacks, *([] if recording is None else [recording])],
            stage=f"seed {unit.seed}",
            settings=spec.model_dump(),
            step=None if repeated is None else repeated.step,
        )
        if recording is not None:
            self.recorded = unit.id, recording
        result = finish(fitted, unit.seed, loaded.unseen)
        if wanted.keep_models:
            plain = unit.cell.partition.how == "natural" and unit.cell.partition.shift is None
            plain = plain and unit.cell.partition.quality is None and unit.cell.data.split is None
            plain = plain and unit.cell.data.max_clients is None and unit.cell.data.max_examples is None
            RunFolder(self.models(unit)).write(fitted.run, spec if plain else None, result)
        entry = replace(candidate.entry, name=candidate.label, title=candidate.part.label or candidate.entry.title)
        return described(entry, fitted.run.bound, loaded.federation, spec, trials, [result]).model_dump_json()

    def _chosen(self, unit: Unit) -> tuple[dict[str, Any], list[Trial]]:
        """The setting of a final run, and the trials that ran to their end."""
        candidate = unit.candidate
        if unit.needs is None:
            return starting(unit), []
        if candidate.leader is not None:
            return {"lr": self._chosen(self.plan.by_id[unit.needs])[0]["lr"]}, []
        found = self.store.result(unit.needs)
        assert found is not None, "a unit is claimed after what it needs"
        setting = {"lr": candidate.lr, **Chosen.model_validate(found).setting}
        return setting, tested(self.store.trials(unit.needs), candidate.lr)

    def checkpoint(self, unit: Unit) -> Path:
        """Where an unfinished final run is stored."""
        return self.store.folder / "checkpoints" / f"{unit.id}.safetensors"

    def models(self, unit: Unit) -> Path:
        """Where the models of a final run are stored."""
        cell = f"{unit.cell.title} {unit.cell.key[:6]}"
        return inside(self.store.folder / "runs", cell, unit.candidate.label, f"seed-{unit.seed}")


def starting(unit: Unit) -> dict[str, Any]:
    """The setting of a method that is not tuned: its defaults and the middle learning rate."""
    rates = points(unit.candidate.space["lr"]) if unit.candidate.lr is None else [unit.candidate.lr]
    return {"lr": rates[len(rates) // 2]}


def counts(trials: list[Tried]) -> dict[str, int]:
    """Number of trials in each state."""
    return {state: sum(t.state == state for t in trials) for state in ("finished", "pruned", "repeated")}


def tested(trials: list[Tried], lr: float | None) -> list[Trial]:
    """Trials that ran to their end, in a comparison's format."""
    return [
        Trial(
            lr=rate if (rate := tried.setting.get("lr", lr)) is not None else math.nan,
            parameters={key: value for key, value in tried.setting.items() if key != "lr"},
            validation=tried.validation,
        )
        for tried in trials
        if tried.state == "finished"
    ]


def most_memory() -> int:
    """Peak bytes of this process; 0 if the system does not report it, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
