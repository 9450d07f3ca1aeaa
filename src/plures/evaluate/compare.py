"""Several methods on one federation, under the same rules."""

from __future__ import annotations

import copy
import inspect
import json
import math
import platform
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from plures.errors import PluresError, PluresWarning, suggestion
from plures.evaluate.callback import Callback
from plures.evaluate.centralised import pooled as centralised
from plures.evaluate.code import Code
from plures.evaluate.fit import Fit, check_patience, finish, fit, patience_fact
from plures.evaluate.folder import RunFolder
from plures.evaluate.recording import Recording
from plures.evaluate.results import (
    BASELINES,
    Against,
    Comparison,
    FederationCard,
    MethodResult,
    MetricCard,
    Point,
    SeedResult,
    SubgroupCard,
    Trial,
)
from plures.evaluate.sample import among, honest_clients, sampled
from plures.evaluate.scores import primary
from plures.evaluate.spec import AnyMetric, RunSpec, distinct, find_method, judged, one_or_all, reducer_of, several
from plures.evaluate.tuning import (
    Search,
    Spaces,
    attempts,
    checked_rates,
    coordinate,
    readings,
    searches,
    try_out,
    tuned,
)
from plures.evaluate.workers import SideBySide, Tell
from plures.federation import SPLITS, Federation, SplitName
from plures.federation.subgroups import Subgroups
from plures.files import check_folder, describe, discard, filed, read_json, salvaged, write_json, write_text
from plures.method import Bound, Method, Phase, Setting
from plures.methods import Entry
from plures.methods.entry import plain, titled
from plures.models import ModelFactory, Network
from plures.names import name_of
from plures.run import Execution, Joint, Run
from plures.run.checkpoint import RUN_AGAIN, discard_damaged
from plures.run.cost import flops, stored_bytes, traffic
from plures.run.execution import Precision
from plures.run.fingerprint import (
    DATA,
    KEY,
    METHOD,
    SETTINGS,
    UNSEEN,
    Fingerprint,
    insist,
    of_data,
    of_method,
    of_metric,
    question,
)
from plures.run.machine import Machine
from plures.run.origin import builder
from plures.run.rays import address_of
from plures.run.timed import timed
from plures.signature import checked, shown
from plures.tables.source import keep_schema
from plures.tasks import Task
from plures.version import __version__

DEFAULT = ("ditto", "fedper", "fedrep", "apfl", "pfedme", "ifca")
LEARNING_RATES = (0.03, 0.1, 0.3)
RESULTS = "results.json"
LARGE = 20_000
"""With more clients than this, scoring only a sample is recommended."""


@dataclass(frozen=True)
class ComparisonProgress:
    """Progress of a comparison.

    Attributes:
        method: name of the method.
        what: ``tuning`` or ``seed 0``, ...
        point: the run's latest point; ``None`` for a run read from an earlier, interrupted comparison.
        rounds: number of rounds of the run.
        done: rounds of the whole comparison finished so far.
        total: rounds of the whole comparison.
        ended: whether the run has ended; rounds skipped by patience count as done.
    """

    method: str
    what: str
    point: Point | None
    rounds: int
    done: int
    total: int
    ended: bool = False


Listener = Callable[[ComparisonProgress], None]


@checked
def compare(
    data: Annotated[str | Path | Federation, "the name of a data set, a folder of .npz files, or a Federation"],
    methods: Sequence[str | Entry | Method | Callable[..., Method]] = DEFAULT,
    *,
    model: str | nn.Module | ModelFactory | None = None,
    rounds: int = 50,
    seeds: int = 3,
    learning_rates: Sequence[float] | None = None,
    tune_rounds: int = 10,
    space: Spaces | None = None,
    every: int | None = None,
    patience: int | None = None,
    unseen: Sequence[str | int] = (),
    task: str | Task | None = None,
    metric: AnyMetric = None,
    subgroups: Sequence[str] = (),
    pooled: bool = False,
    out: Path | str | None = None,
    execution: Execution | None = None,
    listener: Listener | None = None,
    callbacks: Sequence[Callback] = (),
    **work: Any,
) -> Comparison:
    """Compare methods honestly.

    The baselines always take part: a constant, local-only training, FedAvg, FedAvg with a personal intercept, and
    fine-tuned FedAvg. Each method's learning rate, then its main hyper-parameter, is chosen on validation data in short
    runs with seed 0; then it runs once per seed. The constant has nothing to choose, and the intercept has FedAvg's
    learning rate. Each run's round is chosen on validation data, and test data are read at that round. Splits are the
    same for all seeds, so nothing that tuning saw is ever a test example.

    Args:
        data: name of a data set, a folder of ``.npz`` files, ``package.module:function`` that returns a federation, or
            a federation.
        methods: names in the catalogue, ``package.module:function``, or functions that return a method; a single one
            needs no list.
        model: name of a network, or ``package.module:name`` of your own; a factory of modules, called once for each
            seed; a module, whose values start every seed; or ``None`` for a network that fits the data.
        rounds: rounds of the final runs.
        seeds: number of final runs of each method.
        learning_rates: values tried for every method; a single one is used without tuning. Default: .03, .1, .3.
        tune_rounds: rounds of a trial; with 0 nothing is tuned: parameters have their defaults, and the learning rate
            is .1 or the single one given.
        space: values to try of some methods' parameters, in place of the catalogue's, such as
            ``{"ditto": {"lam": [0.01, 0.1]}}``; ``lr`` is the method's learning rate.
        every: rounds between readings of validation data; default: about ten readings.
        patience: end a final run when this many rounds have brought no better reading than its best one; default: run
            all rounds.
        unseen: clients held out of training and given a model at the end.
        task: the learning task, with the loss that all methods minimise: a task, completed from the data, or
            ``package.module:name`` of one; default: the task of the data.
        metric: the metric by which rounds and settings are chosen, methods are ordered, and clients are called harmed:
            the name of one of the task's metrics, ``package.module:name`` of your own, or a metric; default: the
            federation's metric, which is the task's first unless set. Of a list of several, the first is that metric;
            the others are reported beside it.
        subgroups: columns by which results are reported, too, such as ``sex``, or ``age:40,60`` with the edges of
            bands: of a table, and then no inputs unless ``features`` names them; of other data, input columns, or see
            :meth:`~plures.federation.Federation.with_subgroups`.
        pooled: also train one model on all clients' examples together, tuned like the methods: what could be had if all
            data were in one place. It breaks privacy, so it is never called the best.
        out: folder for results and finished runs; an interrupted comparison resumes there.
        execution: how to use the machine. With several ``processes``, each does whole runs with its share of the
            threads; the results equal those of one process with that number of threads. With ``ray``, every run spreads
            its rounds over the cluster.
        listener: called after every round with the progress of the whole comparison.
        callbacks: notified of every run, including tuning; with several processes, once the run has ended.
        work: further fields of :class:`~plures.evaluate.spec.RunSpec`: ``batch_size``, ``epochs``, ``participation``...
            With ``attack`` or ``combine``, every method is also run without, with the same settings
            (:class:`~plures.evaluate.results.Against`); with ``attack``, only honest clients are scored.

    Raises:
        PluresError: before anything is trained, if an argument is wrong, a method does not fit the model or the
            clients, or ``out`` holds another comparison.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> result = plures.compare(hospitals, ["ditto"], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> means = {row.name: row.mean for row in result.rows()}
        >>> means["local"], means["fedavg"], means["ditto"]
        (1.0, 0.5, 1.0)
    """
    _check(rounds, seeds, tune_rounds, every)
    check_patience(patience)
    used(work, whole=isinstance(data, Federation))
    rates = tried_rates(learning_rates, tune_rounds)
    data = str(data) if isinstance(data, Path) else data
    code = Code.typed(*methods, data, model, task, *several(metric))
    methods = (*BASELINES, *([centralised] if pooled else []), *methods)
    entries = distinct(find_method(method, code) for method in methods)
    if space and not tune_rounds:
        raise PluresError("space is not tried with tune_rounds=0: leave it out, or give 1 round or more")
    searched = searches(entries, rates, space or {})
    named = isinstance(data, str) and not isinstance(model, nn.Module) and not callable(model)
    words = [one for one in several(metric) if isinstance(one, str)]
    worded = len(words) == len(several(metric))
    named &= worded and not isinstance(task, Task)
    base = RunSpec(
        data=data if isinstance(data, str) else data.name,
        model=model if isinstance(model, str) else None,
        rounds=rounds,
        unseen=[name_of(client) for client in unseen],
        task=task if isinstance(task, str) else None,
        metric=one_or_all(words) if worded else None,
        subgroups=[subgroups] if isinstance(subgroups, str) else list(subgroups),
        **work,
    )
    own = task if isinstance(task, Task) else None
    if isinstance(data, str):
        federation = base.federation(code, own)
    else:
        federation = base.judged(data if own is None else data.with_task(own), code)
    federation = federation if worded else judged(federation, metric, code)
    seen, held = federation.hold_out(unseen) if unseen else (federation, None)
    base = base.calibrated(seen)
    factory = model if isinstance(model, nn.Module) or callable(model) else base.network(seen, code)
    study = _Study(
        base,
        seen,
        held,
        factory,
        execution or Execution(),
        Path(out) if out is not None else None,
        every or readings(rounds, 10),
        patience,
        listener,
        callbacks,
        named,
        code,
        methods,
    )
    study.plan(entries, searched, tune_rounds, seeds)
    refuse_unmeasured(seen, study.trials)
    settings = base.model_dump(exclude={"method", "parameters", "lr", "seed"}) | {
        "seeds": seeds,
        "learning_rates": list(rates),
        "tune_rounds": tune_rounds,
        **({"space": {name: dict(values) for name, values in space.items()}} if space else {}),
        "read_validation_every": study.every,
        "patience": patience,
    }
    asked = sampled(seen, base.evaluate_clients, study.honest)
    if (len(seen) if asked is None else len(asked)) > LARGE:
        warnings.warn(
            f"all {len(seen)} clients are scored in every run and listed in the results: with evaluate_clients="
            f"{LARGE // 2}, only a random sample of them is",
            PluresWarning,
            stacklevel=3,
        )
    if study.out is not None:
        check_folder(study.out)
        keep_schema(federation, study.out)
    for entry in entries.values():  # refuse methods that do not fit the model or the clients before training anything
        study.rehearse(entry)
    study.insist_combined()
    study.claim({**settings, "methods": list(entries)}, entries.values())
    results = study.results()
    comparison = Comparison(
        federation=card(seen, asked, study.hostile),
        metric=MetricCard.of(primary(seen)),
        methods=results,
        settings=settings,
        environment=environment(study.execution),
        metrics=[MetricCard.of(one, named=one in seen.beside) for one in seen.metrics],
        against=study.against(),
    )
    if study.out is not None:
        write_json(study.out / RESULTS, comparison.model_dump(mode="json"))
        write_text(study.out / "clients.csv", comparison.to_csv())
    return comparison


INSTEAD = {
    "method": "name the methods in methods=[...]",
    "parameters": "give a method its parameters with functools.partial(plures.methods.ditto, lam=0.1)",
    "lr": "give learning_rates=(0.1,) for a fixed one",
    "learning_rate": "give learning_rates=(0.1,) for a fixed one",
    "seed": "give seeds=3 for the seeds 0, 1 and 2",
    "metrics": "metric=[...] names the one that methods are compared by and, behind it, those reported beside it",
}
"""Fields of a run that a comparison sets itself, and what to use instead."""


def used(work: Mapping[str, Any], *, whole: bool) -> None:
    """Refuse settings of a single run that a comparison would not use.

    Args:
        work: the settings.
        whole: whether the data are a federation that is built already.
    """
    own = inspect.signature(compare).parameters
    known = [name for name in (*own, *RunSpec.model_fields) if name not in INSTEAD and name != "work"]
    for name in work:
        if name in INSTEAD:
            raise PluresError(
                f"{name}={shown(work[name])} is an option of a single run, not of a comparison: {INSTEAD[name]}"
            )
        if name not in known:
            raise PluresError(f"compare: no parameter {name!r}; {suggestion(name, known, 'its parameters are')}")
    if whole and work.get("data_options"):
        raise PluresError(
            f"data_options={work['data_options']} are options of a loader, but the data are a federation already: give "
            "them where it is built, and use federation.donate(...) for donate=..."
        )


def tried_rates(given: Sequence[float] | None, rounds: int) -> tuple[float, ...]:
    """The learning rates that a comparison tries.

    Args:
        given: those that the user gave.
        rounds: rounds of a trial.

    Raises:
        PluresError: if none is given, several are given but nothing is tuned, or one is not a positive number.
    """
    if given is None:
        return LEARNING_RATES
    if not given:
        raise PluresError("learning_rates is empty: give at least one")
    if len(given) > 1 and not rounds:
        raise PluresError(
            f"learning_rates={tuple(given)} are not tried with tune_rounds=0: give a single one, or 1 round or more"
        )
    return checked_rates(given)


def _check(rounds: int, seeds: int, tune_rounds: int, every: int | None) -> None:
    """Refuse invalid numbers of rounds, seeds or readings."""
    for name, number, least in (("rounds", rounds, 1), ("seeds", seeds, 1), ("tune_rounds", tune_rounds, 0)):
        if number < least:
            raise PluresError(f"{name}={number}: give at least {least}")
    if every is not None and every < 1:
        raise PluresError(f"every={every}: give at least 1, or None for about ten readings")


PLAIN, UNDEFENDED = "plain", "undefended"
HONEST: Mapping[str, Any] = {"attack": None, "attackers": None, "attack_from": 1, "attack_knows": "all"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {PLAIN: {**HONEST, "combine": None}, UNDEFENDED: {"combine": None}}
"""Runs beside a method's own, and what is different there: the mean without attackers, and the mean under attack."""


@dataclass(frozen=True)
class Tuned:
    """The settings that tuning chose for a method, and its trials."""

    lr: float
    parameters: dict[str, Any]
    trials: list[Trial]


@dataclass(frozen=True)
class Job:
    """The tuning of a method, or one of its final runs.

    Attributes:
        method: name of the method. Methods that train as it does (``Entry.after``) are run along with each final run.
        seed: seed of the final run; ``None`` to tune.
        tuned: settings of the final run.
        variant: which of the runs beside the method's own it is (:data:`VARIANTS`); empty for its own.
        machine: measurements of the machine from an earlier run of the method.
        effort: expected duration, relative to the other final runs.
    """

    method: str
    seed: int | None
    tuned: Tuned
    machine: Machine | None = None
    effort: float = math.inf
    variant: str = ""


def next_job(waiting: Sequence[Job], before: Sequence[Job]) -> int:
    """The place of the job that a process does next: the first tuning, or a run of a method that it has done before.

    A process has recorded or compiled the steps of such a method.
    """
    known = {job.method for job in before}
    return next((n for n, job in enumerate(waiting) if math.isinf(job.effort) or job.method in known), 0)


@dataclass(frozen=True)
class Done:
    """A job's result, all measurements of the machine so far, and the job's duration in seconds.

    Final runs are listed by method.
    """

    found: Tuned | dict[str, SeedResult]
    machine: Machine
    seconds: float


class _Study:
    """The runs of one comparison; finished ones are kept in the folder and not run again."""

    def __init__(
        self,
        base: RunSpec,
        federation: Federation,
        unseen: Federation | None,
        factory: nn.Module | ModelFactory,
        execution: Execution,
        out: Path | None,
        every: int,
        patience: int | None,
        listener: Listener | None,
        callbacks: Sequence[Callback],
        named: bool,
        code: Code,
        methods: Sequence[str | Entry | Method | Callable[..., Method]],
    ) -> None:
        self.base, self.federation, self.unseen, self.factory = base, federation, unseen, factory
        self.execution = execution if execution.ray is None else execution.alone(execution.ray)
        self.out, self.every, self.listener, self.named = out, every, listener, named
        self.callbacks, self.code, self.patience, self.methods = callbacks, code, patience, methods
        self.done = self.total = 0
        self.tell: Tell = self._count
        self.beside = execution.side
        self.machine = Machine()
        threat = base.threat()
        self.hostile = [] if threat is None else threat.hostile(federation.clients)
        self.honest = honest_clients(len(federation), self.hostile)
        self.uncombined: dict[str, str] = {}
        self.variants: dict[str, list[str]] = {}
        self.found: dict[tuple[str, str], MethodResult] = {}

    def plan(self, entries: Mapping[str, Entry], searched: Mapping[str, Search], tune_rounds: int, seeds: int) -> None:
        """Set the runs to be made, and count their rounds."""
        self.entries, self.searched, self.tune_rounds, self.seeds = entries, searched, tune_rounds, seeds
        trials = {
            name: attempts(searched[name].rates, searched[name].space, entry.defaults)
            for name, entry in entries.items()
            if tuned(entry)
        }
        self.trials = sum(trials.values()) if tune_rounds else 0
        self.machine = replace(self.machine, several=self.trials > 0)
        self.total = (
            self.trials * tune_rounds + sum(entry.rounds or self.base.rounds for entry in entries.values()) * seeds
        )

    def claim(self, settings: Mapping[str, Any], entries: Iterable[Entry]) -> None:
        """Claim the folder for this comparison, or refuse the folder of another one."""
        if self.out is None:
            return
        file, results = self.out / "comparison.json", self.out / RESULTS
        asked = self.question(next(iter(entries)), self.base.model_copy(update={"combine": None}))
        asked = {part: fact for part, fact in asked.items() if part != METHOD}
        own = {key: value for key, value in settings.items() if key not in RunSpec.model_fields}
        own |= {} if self.base.combine is None else {"combine": self.base.combine}
        asked[SETTINGS] = {key: json.dumps(value, default=str) for key, value in own.items()} | asked[SETTINGS]
        alone = self.base.model_copy(update={"combine": None})
        for entry in entries:
            asked[f"{METHOD} {entry.name}"] = of_method(alone.built(entry=entry), entry.name, entry.given({}))
        if results.exists() and not file.exists():
            raise PluresError(f"{self.out} holds results of another comparison ({RESULTS}): choose another folder")
        once = "each of its runs and trials is checked against this comparison instead"
        known = salvaged(lambda: read_json(file, earlier=True), once) if file.exists() else None
        if known is not None:
            insist(f"{self.out} holds another comparison", known.get(KEY), asked)
        else:
            address_of(self.execution.ray)  # nothing is written for a cluster that is not there
            write_json(file, json.loads(json.dumps({**settings, KEY: asked}, default=str)))

    def question(self, entry: Entry, spec: RunSpec) -> Fingerprint:
        """Fingerprint of everything that a method's run depends on."""
        method, dtype = spec.built(entry=entry), self.execution.dtype
        setting = Setting.of(self.federation)
        network = builder(method, self.factory, setting, self.federation.to("cpu"), dtype)(spec.seed)
        asked = question(
            self._data[DATA],
            network,
            of_method(method, entry.name, entry.given(spec.parameters)),
            spec.training(),
            spec.who(),
            spec.seed,
            precision=self.execution.precision,
            every=self.every,
            **patience_fact(self.patience),
            **of_metric(self.federation),
            **among(self.base.evaluate_clients),
            **self._attacked(spec),
        )
        return asked | self._data

    def _attacked(self, spec: RunSpec) -> dict[str, Any]:
        """The attack as an entry of a fingerprint, and who is left out of all scores; empty without attackers."""
        threat = spec.threat()
        found = {} if threat is None else {"threat": threat}
        return found | ({"attackers": [self.federation.clients[i] for i in self.hostile]} if self.hostile else {})

    @cached_property
    def _data(self) -> Fingerprint:
        """Fingerprint of the clients' data, including clients held out."""
        data = {DATA: of_data(self.federation.to("cpu", self.execution.dtype))}
        return data if self.unseen is None else data | {UNSEEN: of_data(self.unseen.to("cpu", self.execution.dtype))}

    def results(self) -> list[MethodResult]:
        """Tune every method, then run it once per seed. Later runs of a method reuse the first one's measurements.

        Several processes do the longest final runs first, so that they finish at about the same time, and runs of one
        method in one process where they can, so that its steps are recorded once.
        """
        settled = {name: Tuned(one.rates[len(one.rates) // 2], {}, []) for name, one in self.searched.items()}
        own = {(name, ""): dict[int, SeedResult]() for name in self.entries}
        runs = own | {(name, one): dict[int, SeedResult]() for name, some in self.variants.items() for one in some}
        self.total += sum(self.entries[name].rounds or self.base.rounds for name, one in runs if one) * self.seeds
        jobs = deque[Job]()
        for name, entry in self.entries.items():
            if entry.after not in self.entries:
                jobs.append(Job(name, None if self.tune_rounds and tuned(entry) else 0, settled[name]))

        def finished(job: Job, done: Done) -> None:
            effort, begun = done.seconds, job.seed is None or not (self.tune_rounds and tuned(self.entries[job.method]))
            if isinstance(done.found, Tuned):
                settled[job.method] = done.found
                effort /= max(1, len(done.found.trials))
                settled.update({name: Tuned(done.found.lr, {}, []) for name in self.followers(job.method)})
            elif job.seed is not None:
                for name, result in done.found.items():
                    runs[name, job.variant][job.seed] = result
            if begun and job.seed in (None, 0) and not job.variant:
                rest = range(0 if job.seed is None else 1, self.seeds)
                wanted = [(seed, "") for seed in rest]
                wanted += [(seed, one) for one in self.variants.get(job.method, ()) for seed in range(self.seeds)]
                jobs.extend(Job(job.method, seed, settled[job.method], done.machine, effort, b) for seed, b in wanted)
                if self.beside > 1:
                    ordered = sorted(jobs, key=lambda waiting: waiting.effort, reverse=True)
                    jobs.clear()
                    jobs.extend(ordered)

        if self.beside > 1:
            SideBySide(self, self.beside, next_job)(jobs, finished)
        while jobs:
            job = jobs.popleft()
            finished(job, self.do(job))
        self.found = {key: self._described(*key, settled[key[0]], found) for key, found in runs.items()}
        return [self.found[name, ""] for name in self.entries]

    def against(self) -> Against | None:
        """What was attacked and how it was combined, with the runs beside; ``None`` without either."""
        if self.base.attack is None and self.base.combine is None:
            return None
        return Against(
            attack=self.base.attack,
            attackers=[self.federation.clients[i] for i in self.hostile],
            first=self.base.attack_from,
            knows=self.base.attack_knows,
            combine=self.base.combine,
            uncombined=self.uncombined,
            population=len(self.federation),
            cohort=(cohort := self._cohort()),
            stands=None if self.base.combine is None else reducer_of(self.base.combine).stands(cohort),
            plain=[found for (_, one), found in self.found.items() if one == PLAIN],
            undefended=[found for (_, one), found in self.found.items() if one == UNDEFENDED],
        )

    def _cohort(self) -> int:
        """Number of clients in the first round of a method that sends something."""
        rule = self.base.who()
        rule = rule.of(travels=True) if isinstance(rule, Joint) else rule
        return len(rule.cohort(Setting.of(self.federation.to("cpu")), 0, 0))

    def do(self, job: Job) -> Done:
        """Tune a method, or do one of its final runs."""
        if not self.entries:  # in another process, which looks the methods up again
            self.entries = distinct(find_method(method, self.code) for method in self.methods)
        entry, begun = self.entries[job.method], time.perf_counter()
        if job.machine is not None:
            self.machine.learn(job.machine)
        if job.seed is None:
            found: Tuned | dict[str, SeedResult] = self._tune(entry)
        else:
            found = self._finals(entry, job.seed, job.tuned, job.variant)
        return Done(found, self.machine.portable(), time.perf_counter() - begun)

    def followers(self, name: str) -> list[str]:
        """The methods that train as another one does, with its learning rate."""
        return [other for other, entry in self.entries.items() if entry.after == name]

    def travelling(self) -> _Study:
        other = copy.copy(self)
        other.listener, other.callbacks, other.tell, other.entries = None, (), _silent, {}
        other.execution = self.execution.alone(address_of(self.execution.ray))
        other.machine = self.machine.portable()
        return other

    def _described(self, name: str, variant: str, tuned: Tuned, runs: Mapping[int, SeedResult]) -> MethodResult:
        entry = self.entries[name]
        spec = self._spec(entry, tuned.lr, tuned.parameters, variant)
        bound = self.bound(entry, spec)
        seeds = [runs[seed] for seed in range(self.seeds)]
        return described(entry, bound, self.federation, spec, tuned.trials, seeds)

    def rehearse(self, entry: Entry) -> None:
        """Set up a run of a method, and build the method with every value of the tuning, to find errors early."""
        precision: Precision = "float64" if self.execution.precision == "float64" else "float32"
        alone = replace(
            self.execution,
            backend="loop",
            chunk=1,
            compile=False,
            capture=False,
            precision=precision,
            processes=1,
            ray=None,
            features=False,
        )
        search = self.searched[entry.name]
        for lr in search.rates:
            self.base.model_copy(update={"lr": lr}).training()
        for name, values in search.space.items():
            for value in values:
                entry(**{name: value})
        spec = self._spec(entry, search.rates[0], {})
        if reason := spec.uncombined(entry, self.federation, self.factory):
            self.uncombined[entry.name] = reason
        run = self._run(entry, self._spec(entry, search.rates[0], {}), execution=alone)
        if run.bound.travels and not entry.together:
            attacked, combined = bool(self.hostile), self.base.combine is not None and not reason
            self.variants[entry.name] = [PLAIN] * (attacked or combined) + [UNDEFENDED] * (attacked and combined)

    def insist_combined(self) -> None:
        """Refuse a robust combination that no method takes."""
        if self.base.combine is not None and self.uncombined.keys() >= self.entries.keys():
            raise PluresError(f"combine={self.base.combine!r}: no method of the comparison takes it; leave it out")

    def _spec(self, entry: Entry, lr: float, parameters: Mapping[str, Any], variant: str = "") -> RunSpec:
        """Settings of a method's run, or of one beside it."""
        own = {
            "method": entry.origin or entry.name,
            "lr": lr,
            "parameters": {**entry.fixed, **parameters},
            "rounds": entry.rounds or self.base.rounds,
            **({"combine": None} if entry.name in self.uncombined else {}),
        }
        return self.base.model_copy(update=own | dict(VARIANTS.get(variant, {})))

    def bound(self, entry: Entry, spec: RunSpec) -> Bound:
        """A method bound to the comparison's model and clients."""
        method = spec.built(entry=entry)
        setting = timed(Setting.of(self.federation.to("cpu")), spec.who(), spec.training())
        return method.bind(Network(method.prepare(self.factory, setting).to(dtype=self.execution.dtype)), setting)

    def _tune(self, entry: Entry) -> Tuned:
        """Choose the learning rate with default parameters, then each hyper-parameter with that rate."""
        rates, space = self.searched[entry.name].rates, self.searched[entry.name].space
        lr, parameters, trials = coordinate(
            rates,
            space,
            entry.defaults,
            lambda lr, parameters: self._trial(
                entry, lr, parameters, self.tune_rounds, 1 if parameters else len(rates)
            ),
            higher=primary(self.federation).higher,
        )
        if trials and all(math.isinf(trial.validation) for trial in trials):
            warnings.warn(
                f"{entry.name} diverged with every setting tried: give smaller learning_rates",
                PluresWarning,
                stacklevel=5,
            )
        return Tuned(lr, parameters, trials)

    def _trial(self, entry: Entry, lr: float, parameters: dict[str, Any], rounds: int, alike: int) -> Trial:
        """Try a setting. ``alike`` trials differ only in the learning rate, and so share their compiled steps."""
        name = titled(f"{entry.name} lr={lr}", parameters)
        file = None if self.out is None else self.out / "trials" / f"{filed(name)}.json"
        spec = self._spec(entry, lr, parameters).model_copy(update={"rounds": rounds})
        asked = None if file is None else self.question(entry, spec)
        progress = _Told(self.tell, entry.name, "tuning", rounds)
        if file is not None and asked is not None and file.exists():
            kept = salvaged(partial(read_json, file), "the trial is repeated")
            if kept is not None:
                insist(f"{file} is a trial of another comparison", kept.get(KEY), asked)
                self.tell(entry.name, "tuning", None, rounds, rounds, True)
                return Trial.model_validate(kept["trial"])
        run = self._run(entry, spec, rounds=alike * rounds)
        fitted = try_out(run, spec, name, progress=progress, callbacks=self.callbacks, honest=self.honest)
        progress.ended(fitted)
        trial = Trial(lr=lr, parameters=parameters, validation=fitted.chosen.validation)
        if file is not None:
            write_json(file, {KEY: asked, "trial": trial.model_dump(mode="json")})
        return trial

    def _finals(self, entry: Entry, seed: int, chosen: Tuned, variant: str) -> dict[str, SeedResult]:
        """Run a method to the end with one seed, and the methods that train as it does, which repeat its rounds."""
        left = -(-(self.seeds - seed) // self.beside)
        spec = self._spec(entry, chosen.lr, chosen.parameters, variant).model_copy(update={"seed": seed})
        result, recording = self._final(entry, spec, left, variant)
        found = {entry.name: result}
        for name in self.followers(entry.name):
            follower = self.entries[name]
            spec = self._spec(follower, chosen.lr, {}, variant).model_copy(update={"seed": seed})
            found[name], _ = self._final(follower, spec, left, variant, recording)
        return found

    def _final(
        self, entry: Entry, spec: RunSpec, left: int, variant: str, repeated: Recording | None = None
    ) -> tuple[SeedResult, Recording | None]:
        """Run a method to the end with one seed; also returns its rounds, if other methods can repeat them.

        Args:
            entry: the method.
            spec: settings of the run.
            left: the number of seeds still to run, including this one.
            variant: which of the runs beside the method's own it is; empty for its own.
            repeated: the rounds of a run that trained in the same way. What repeats them takes little, so it is not
                kept in a checkpoint.
        """
        stage = f"seed {spec.seed}{f', {variant}' if variant else ''}"
        progress = _Told(self.tell, entry.name, stage, spec.rounds)
        name = f"{filed(entry.name)}-seed{spec.seed}{f'-{variant}' if variant else ''}"
        folder = None if self.out is None else RunFolder(self.out / "runs" / name)
        asked = None if folder is None else self.question(entry, spec)
        if folder is not None and asked is not None and folder.finished:
            kept = salvaged(folder.whole, RUN_AGAIN)
            if kept is not None:
                insist(f"{folder.path} holds another run", folder.question(), asked)
                self.tell(entry.name, stage, None, spec.rounds, spec.rounds, True)
                return kept, None
        checkpoint = None if self.out is None else self.out / "checkpoints" / f"{name}.safetensors"
        if checkpoint is not None:
            discard_damaged(checkpoint)
        if repeated is not None and repeated.serves(spec) and (checkpoint is None or not checkpoint.exists()):
            run, checkpoint = self._run(entry, spec, execution=repeated.run.execution), None
        else:
            run, repeated = self._run(entry, spec, checkpoint, rounds=left * spec.rounds), None
        recording = Recording(run, spec) if self.followers(entry.name) else None
        fitted = fit(
            run,
            titled(entry.name, {k: v for k, v in spec.parameters.items() if k not in entry.fixed}),
            every=self.every,
            patience=self.patience,
            checkpoint=checkpoint,
            progress=progress,
            callbacks=[*self.callbacks, *([] if recording is None else [recording])],
            stage=stage,
            settings=spec.model_dump(),
            question=asked,
            evaluate_clients=spec.evaluate_clients,
            step=None if repeated is None else repeated.step,
            honest=self.honest,
        )
        result = finish(fitted, spec.seed, self.unseen, self.base.threat())
        progress.ended(fitted)
        if folder is not None:
            again = self.named and as_json(spec.parameters) == spec.parameters
            folder.write(fitted.run, spec if again else None, result, asked, fitted.asked)
        if checkpoint is not None:
            discard(checkpoint)
        return result, recording

    def _run(
        self,
        entry: Entry,
        spec: RunSpec,
        checkpoint: Path | None = None,
        execution: Execution | None = None,
        rounds: int | None = None,
    ) -> Run:
        """A new run. The fastest execution is measured in the first run of each kind of work."""
        execution = execution or self.execution
        if checkpoint is not None and checkpoint.exists():
            execution = saved_execution(checkpoint, self.execution)
        machine = self.machine.expecting(rounds or spec.rounds)
        return spec.run(self.federation, execution, self.code, entry=entry, model=self.factory, machine=machine)

    def _count(self, method: str, what: str, point: Point | None, rounds: int, done: int, ended: bool) -> None:
        """Report the comparison's progress to the listener."""
        self.done += done
        if self.listener is not None:
            self.listener(ComparisonProgress(method, what, point, rounds, self.done, self.total, ended))


class _Told:
    """Reports a run's progress after each round, and its end, where rounds that were not run count as done."""

    def __init__(self, tell: Tell, method: str, what: str, rounds: int) -> None:
        self.tell, self.method, self.what, self.rounds, self.done = tell, method, what, rounds, 0

    def __call__(self, point: Point) -> None:
        self.done += 1
        self.tell(self.method, self.what, point, self.rounds, 1, False)

    def ended(self, fitted: Fit[Run]) -> None:
        self.tell(self.method, self.what, fitted.chosen, self.rounds, self.rounds - self.done, True)


def _silent(*event: object) -> None:
    """Report progress to nobody."""


def refuse_unmeasured(
    federation: Federation, trials: int, instead: str = "tune_rounds=0 and the middle learning rate"
) -> None:
    """Refuse to tune without validation data, and to compare without test data.

    Args:
        federation: the clients.
        trials: number of tuning runs.
        instead: how to avoid tuning, for the message.

    Raises:
        PluresError: if a split that is needed has no example.
    """
    wanted: dict[SplitName, bool] = {"validation": trials > 0, "test": True}
    for split, needed in wanted.items():
        if needed and not len(federation.splits[split].rows):
            remedy = f", or {instead}" if split == "validation" else ""
            raise PluresError(
                f"federation {federation.name!r} has no {split} example, so nothing could be "
                f"{'tuned' if trials and split == 'validation' else 'compared'}: give the split rule a {split} share "
                f"above 0{remedy}"
            )


def described(
    entry: Entry,
    bound: Bound,
    federation: Federation,
    spec: RunSpec,
    trials: Sequence[Trial],
    seeds: Sequence[SeedResult],
) -> MethodResult:
    """A method's result: its settings, costs, tuning trials and runs.

    Args:
        entry: the method.
        bound: the method bound to its network and clients.
        federation: the clients.
        spec: the settings of its runs.
        trials: its tuning trials.
        seeds: the results of its runs.
    """
    up, down = (0, 0) if entry.together else traffic(bound)
    return MethodResult(
        name=entry.name,
        title=entry.title if spec.combine is None else f"{entry.title} + {spec.combine}",
        family=entry.family,
        citation=entry.citation,
        lr=spec.lr if any(isinstance(item, Phase) for item in bound.method.schedule) else None,
        parameters=as_json(spec.parameters),
        trials=list(trials),
        bytes_up=up,
        bytes_down=down,
        stored=stored_bytes(bound),
        flops=flops(bound, federation, spec.training()),
        seeds=list(seeds),
    )


def as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values: functions and selectors by their names."""
    return {name: value if _json(value) else plain(value) for name, value in parameters.items()}


def _json(value: Any) -> bool:
    several = isinstance(value, list | tuple)
    return all(map(_json, value)) if several else value is None or isinstance(value, bool | int | float | str)


def saved_execution(checkpoint: Path, execution: Execution) -> Execution:
    """The execution of a checkpoint's run, so that resuming is exact to the bit.

    On another kind of device, that is impossible, so the fastest execution there is chosen anew.
    """
    saved = describe(checkpoint)["execution"]
    same = ["precision"] if execution.precision == "auto" else []
    if torch.device(saved["device"]).type == execution.torch_device.type:
        same += ["backend", "chunk", "compile", "capture", "convolutions"]
        same += ["features"] if execution.side == 1 and execution.ray is None else []
    return replace(execution, **{k: saved[k] for k in same if k in saved})


def card(federation: Federation, clients: Sequence[int] | None = None, hostile: Sequence[int] = ()) -> FederationCard:
    """A federation's data sheet.

    Args:
        federation: the clients.
        clients: positions of the clients that were scored; default: all.
        hostile: positions of the clients that attack.
    """
    attackers = [federation.clients[i] for i in hostile]
    population = len(federation) - len(hostile)
    federation = federation if clients is None else federation.take(clients)
    train = federation.splits["train"]
    labels = None
    if federation.task.classes:
        labels = federation.task.counts_of(federation.targets[train.rows], train.owners, len(federation))
    return FederationCard(
        name=federation.name,
        kind=federation.task.kind,
        classes=list(federation.task.classes),
        clients=list(federation.clients),
        sizes={split: federation.splits[split].sizes.tolist() for split in SPLITS},
        labels=[] if labels is None else labels.tolist(),
        population=None if len(federation) == population else population,
        hostile=attackers,
        metadata={key: [str(value) for value in column] for key, column in federation.metadata.items()},
        source=federation.source,
        subgroups={column: _subgroups(federation, groups) for column, groups in federation.subgroups.items()},
    )


def _subgroups(federation: Federation, groups: Subgroups) -> SubgroupCard:
    """How many examples of each subgroup every client has."""
    several, sizes = len(groups.names), dict[str, list[list[int]]]()
    for split in SPLITS:
        index = federation.splits[split]
        places = groups.codes[index.rows.cpu()] * len(federation) + torch.as_tensor(index.owners).cpu()
        sizes[split] = places.bincount(minlength=several * len(federation)).view(several, -1).tolist()
    return SubgroupCard(names=list(groups.names), sizes=sizes)


def environment(execution: Execution) -> dict[str, str]:
    """Versions and machine, for the record."""
    device = execution.torch_device
    return {
        "plures": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
    }
