"""The plan of a study: cells, and units of work on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from plures.evaluate.own import METRIC, NETWORK, TASK, Named
from plures.evaluate.results import BASELINES
from plures.evaluate.spec import RunSpec, find_method
from plures.evaluate.tuning import readings, tuned
from plures.federation import SplitRule
from plures.methods import Entry
from plures.run.facts import facts
from plures.run.fingerprint import of_method
from plures.study.document import CLOCKED, BudgetPart, DataPart, MethodPart, PartitionPart, Range, Space
from plures.study.reading import Source, title

Kind = Literal["measure", "tuning", "seed"]
UNUSED = 0.01
"""The learning rate where none is chosen: of a run that is measured, and of the constant, which does not train."""


@dataclass(frozen=True)
class Cell:
    """A combination of data set, partition and budget.

    Attributes:
        key: identity: a digest of its content.
        title: its name in results.
        data: the data set.
        partition: the partition.
        budget: the budget.
        path: the keys of the three in the document, for messages.
    """

    key: str
    title: str
    data: DataPart
    partition: PartitionPart
    budget: BudgetPart
    path: tuple[int, int, int]

    @property
    def every(self) -> int:
        """Rounds between validations."""
        return self.budget.every or readings(self.budget.rounds, 10)

    def spec(self, data: str) -> RunSpec:
        """The run settings shared by all methods; ``data`` is the name or the folder to load."""
        work = self.budget.model_dump(exclude={"label", "every", "patience", "batch_size"})
        if self.budget.steps is not None:
            del work["epochs"]
        options = self.data.options | (
            {} if self.data.split is None else {"split": SplitRule(**self.data.split.model_dump())}
        )
        return RunSpec(
            data=data,
            data_options=options,
            model=self.data.model,
            model_options=self.data.model_options,
            batch_size=self.budget.batch_size or None,
            unseen=self.data.unseen,
            task=self.data.task,
            metric=self.data.metric,
            augment=self.data.augment,
            **work,
        )


@dataclass(frozen=True)
class Candidate:
    """A method as the study runs it.

    Attributes:
        label: its name in results.
        part: its entry in the document.
        entry: its place in the catalogue.
        lr: fixed learning rate, ``None`` to search it.
        space: the search space besides fixed parameters; includes ``lr`` unless it is fixed.
        leader: the method that it trains as, with that one's learning rate (``Entry.after``); ``None`` for most.
    """

    label: str
    part: MethodPart
    entry: Entry
    lr: float | None
    space: Space
    leader: Candidate | None = None


@dataclass(frozen=True)
class Unit:
    """A piece of work that one process does.

    Attributes:
        id: identity: a digest of everything that determines its result, apart from the machine.
        cell: the cell.
        candidate: the method.
        kind: ``measure`` (a round is timed), ``tuning`` of a method on a cell, or ``seed``, one final run.
        seed: seed of a final run; 0 for the others.
        needs: the unit that must be done first, if any: the tuning, or the run of the leader with the same seed.
    """

    id: str
    cell: Cell
    candidate: Candidate
    kind: Kind
    seed: int
    needs: str | None

    @property
    def rounds(self) -> int:
        """Rounds of a final run."""
        return self.candidate.entry.rounds or self.cell.budget.rounds

    @property
    def tuning(self) -> str | None:
        """The method's own tuning, if it has one."""
        return None if self.candidate.leader is not None else self.needs

    @property
    def name(self) -> str:
        what = f"seed {self.seed}" if self.kind == "seed" else self.kind
        return f"{self.cell.title}, {self.candidate.label}, {what}"


@dataclass(frozen=True)
class Plan:
    """All cells and units of a study, in the order in which one process does them.

    Attributes:
        source: the document.
        search: how settings are searched: ``optuna``, ``random`` or ``grid``.
        cells: the cells.
        candidates: the methods.
        measures: the units that time a round.
        units: tuning and final runs.
    """

    source: Source
    search: str
    cells: tuple[Cell, ...]
    candidates: tuple[Candidate, ...]
    measures: tuple[Unit, ...]
    units: tuple[Unit, ...]

    @cached_property
    def by_id(self) -> Mapping[str, Unit]:
        return {unit.id: unit for unit in (*self.measures, *self.units)}

    def of(self, cell: Cell, candidate: Candidate) -> list[Unit]:
        """Tuning and final runs of a method on a cell."""
        return [unit for unit in self.units if unit.cell is cell and unit.candidate is candidate]

    def measured_by(self, unit: Unit) -> str:
        """The unit that times a unit's rounds and settles its execution."""
        trains = unit.candidate.leader or unit.candidate
        return digest(_identity(self.source, unit.cell, trains, self.search), "measure")


def plan_of(source: Source, search: str) -> Plan:
    """The plan of a document. The baselines of every comparison take part whether they are listed or not.

    A method that trains as another one does (FedAvg with an intercept) is not tuned. Each of its runs comes after the
    other's run with the same seed, so that the same process repeats the rounds.
    """
    document, cells = source.document, tuple(_cells(source))
    listed = {part.title for part in document.methods}
    baselines = [MethodPart(name=name) for name in BASELINES if name not in listed]
    candidates = _candidates(source, (*baselines, *document.methods))
    measures, units = [], []
    for cell in cells:
        here = [c for c in candidates if c.part.data is None or (cell.data.label or cell.data.name) in c.part.data]
        for candidate in here:
            if candidate.leader is not None:
                continue
            about = _identity(source, cell, candidate, search)
            measures.append(Unit(digest(about, "measure"), cell, candidate, "measure", 0, None))
            own = bool(candidate.space) and document.tuning.trials > 0
            first = digest(about, "tuning") if own else None
            if first is not None:
                units.append(Unit(first, cell, candidate, "tuning", 0, None))
            followers = [(c, _identity(source, cell, c, search)) for c in here if c.leader is candidate]
            for seed in document.seeds:
                done = Unit(digest(about, seed), cell, candidate, "seed", seed, first)
                after = [Unit(digest(said, seed), cell, c, "seed", seed, done.id) for c, said in followers]
                units += [done, *after]
    return Plan(source, search, cells, candidates, tuple(measures), tuple(units))


def _cells(source: Source) -> Iterator[Cell]:
    document = source.document
    titles = [title(part) for part in document.partitions]
    left_out = {"label", "partitions"}
    for i, data in enumerate(document.data):
        wanted = titles if data.partitions is None else data.partitions
        for j, partition in enumerate(document.partitions):
            if titles[j] not in wanted:
                continue
            for k, budget in enumerate(document.budgets):
                parts = [data.label or data.name]
                parts += [titles[j]] if titles[j] != "natural" or len(wanted) > 1 else []
                parts += [budget.label or f"{budget.rounds} rounds"] if len(document.budgets) > 1 else []
                said = [part.model_dump(mode="json", exclude=left_out) for part in (data, partition, budget)]
                added = (
                    (0, "task"),
                    (0, "metric"),
                    (0, "augment"),
                    (2, "patience"),
                    (2, "participation"),
                    (2, "at_most"),
                    (2, "dp"),
                    (2, "drop_out"),
                    (2, "attack"),
                    (2, "attackers"),
                    (2, "attack_from"),
                    (2, "attack_knows"),
                    (2, "combine"),
                    *((2, one) for one in CLOCKED),
                )
                for part, later in added:  # keeps keys where they are not given
                    if said[part][later] == type((data, partition, budget)[part]).model_fields[later].default:
                        del said[part][later]
                yield Cell(digest(said), ", ".join(parts), data, partition, budget, (i, j, k))


def _candidates(source: Source, parts: Sequence[MethodPart]) -> tuple[Candidate, ...]:
    found = [_candidate(source, part) for part in parts]
    by_label = {candidate.label: candidate for candidate in found}
    return tuple(replace(c, leader=by_label[c.entry.after]) if c.entry.after else c for c in found)


def _candidate(source: Source, part: MethodPart) -> Candidate:
    entry = find_method(part.name, source.code)
    own: Mapping[str, Any] = entry.space if part.space is None else part.space
    space = {key: values if isinstance(values, Range) else list(values) for key, values in own.items()}
    space = {key: values for key, values in space.items() if key not in part.parameters}
    rates = space.pop("lr", source.document.tuning.lr)
    if not tuned(entry):
        return Candidate(part.title, part, entry, None if entry.after else UNUSED, {})
    if part.lr is not None:
        return Candidate(part.title, part, entry, part.lr, space)
    if isinstance(rates, list) and len(rates) == 1:
        return Candidate(part.title, part, entry, rates[0], space)
    return Candidate(part.title, part, entry, None, {"lr": rates, **space})


def _identity(source: Source, cell: Cell, candidate: Candidate, search: str) -> dict[str, Any]:
    """Everything that determines a method's results on a cell."""
    document = source.document
    space = {k: values.model_dump() if isinstance(values, Range) else values for k, values in candidate.space.items()}
    leader = candidate.leader
    return {
        "cell": cell.key,
        "method": [candidate.part.name, candidate.lr, candidate.part.parameters, space],
        "code": of_method(candidate.entry(**candidate.part.parameters), candidate.part.name),
        "tuning": document.tuning.model_dump(mode="json", exclude={"lr", "search"}) | {"search": search},
        **_own_code(source, cell),
        "execution": document.execution.model_dump(mode="json", include={"backend", "chunk", "compile", "device"}),
        **({} if leader is None else {"after": _identity(source, cell, leader, search)}),
    }


def _own_code(source: Source, cell: Cell) -> dict[str, Any]:
    """Code of a user's network, task and metric, so that results are not mistaken for those of other code."""
    data = cell.data
    names: list[tuple[Named[Any], str | None]] = [(NETWORK, data.model), (TASK, data.task)]
    own = {kind.kind: kind.find(name, source.code) for kind, name in names if name and ":" in name}
    for place, name in enumerate(data.measured):
        own |= {f"metric {place}" if place else "metric": METRIC.find(name, source.code)} if ":" in name else {}
    return {what: facts(one, what) for what, one in own.items()}


def digest(*said: object) -> str:
    """A short name of JSON-like values."""
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=10).hexdigest()
