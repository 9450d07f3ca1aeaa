"""Description of a run by names and numbers, as a command line or a run's folder gives it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import nn

from plures.composed import called, made, options_of, pieces
from plures.errors import PluresError, suggestion
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.own import DP, METHOD, ROBUST, find_loader, find_metric, find_network, find_task
from plures.evaluate.results import Result
from plures.faults import explain
from plures.federation import Federation, Split
from plures.federation.subgroups import parsed
from plures.hardware import NAMED, FleetRule, FleetTable
from plures.method import LOCAL_OPTIMIZERS, Method, Optimizer, Setting
from plures.methods import METHODS, Entry
from plures.methods.entry import POOLED, titled
from plures.metrics import Metric
from plures.models import ModelFactory
from plures.privacy import Plan, Private
from plures.robust import Robust
from plures.run import (
    Buffered,
    BySize,
    Clocked,
    DropOut,
    Execution,
    Full,
    Joint,
    Participation,
    Poisson,
    Run,
    Threatening,
    Training,
    Uniform,
)
from plures.run.fingerprint import UNSEEN, Fingerprint, of_data, of_run
from plures.run.machine import Machine
from plures.run.origin import Origin
from plures.run.participation import drawn
from plures.run.selection import SELECTED
from plures.run.timed import timed
from plures.run.together import PooledRun
from plures.run.training import RATE_SCHEDULES
from plures.signature import arguments, shown
from plures.tasks import Task

AnyMetric = str | Metric | Sequence[str | Metric] | None
"""A metric, or several of which the first is chosen by."""
OPTIMIZER_NAMES, SCHEDULE_NAMES = tuple(LOCAL_OPTIMIZERS), tuple(RATE_SCHEDULES)
SAMPLED = 0.1
"""Default share of the clients in a sample."""


class RunSpec(Result):
    """Everything that determines a run, apart from the machine.

    Attributes:
        data: name in the catalogue of data sets; a folder of ``.npz`` files, one per client; or
            ``package.module:function`` that returns a federation.
        data_options: options of the loader; ``donate`` is the share of training rows that every client, unless held
            out, makes public (:meth:`~plures.federation.Federation.donate`).
        model: name of a reference network, or ``package.module:name`` of a module or of a function that returns one;
            ``None`` for one that fits the data.
        model_options: options of the network named in ``model``.
        method: name in the catalogue of methods, ``package.module:function``, or such names joined by ``+``. User code
            runs only with the caller's consent (:class:`~plures.evaluate.Code`), because a run may come from a file.
        parameters: parameters of the method.
        lr: learning rate.
        optimizer: local optimizer, with options or without: ``sgd(nesterov=true)``, ``adam(betas=[0.9,0.99])``,
            ``adamw``.
        momentum: momentum of SGD, if it is not among the optimizer's options; the other optimizers have their own.
        weight_decay: weight decay of the local optimizer, if it is not among its options.
        schedule: schedule of the learning rate over rounds, with options or without: ``constant``,
            ``cosine(final=0.1)``, ``exponential(gamma=0.98)``, ``milestones(at=[20,40],gamma=0.1)``.
        rounds: number of rounds.
        batch_size: examples in a batch; ``None``, in files 0, for all.
        epochs: passes over the data in a visit; default: 1, unless ``steps`` are given.
        steps: gradient steps in a visit instead of epochs.
        clip: largest norm of a client's gradient.
        participation: ``full``, ``uniform``, ``size`` or ``poisson``; default: ``uniform`` if a fraction below 1 is
            given, otherwise ``full``.
        fraction: share of the clients in a cohort, with ``poisson`` the probability that a client takes part, in
            (0, 1]; default for a sample: 0.1. Not allowed below 1 with ``full``.
        at_most: largest cohort of ``poisson``; default: no limit.
        drop_out: probability, below 1, that a client of a cohort stays away in a round, simulated.
        dp: differential privacy of whatever the method sends: options of :class:`plures.privacy.Private`, such as
            ``clip=0.5,noise=1,delta=1e-5``, or ``epsilon=8`` in place of ``noise``, for the noise with which this run's
            rounds spend so much; default: none. Tuning counts neither in noise nor in epsilon.
        seed: root of the run's randomness; splits have their own seed in ``data_options``.
        unseen: clients held out of training.
        task: the learning task: ``package.module:name`` of a task of your own, such as one with class weights, or the
            name of a kind; default: the task of the data.
        metric: the metric by which the round is chosen: a metric of the task, or ``package.module:name`` of your own;
            default: the task's first. A list of several: the others are reported beside the first.
        augment: augmentations of training batches, such as ``crop(4)+flip`` (:meth:`Federation.augmented`).
        evaluate_clients: number of clients to score, drawn once at random; default: all.
        subgroups: columns by which results are reported, too, such as ``sex`` or ``age:40,60``
            (:meth:`~plures.federation.Federation.with_subgroups`).
        attack: what hostile clients do in this simulation, with options or without: ``sign_flip``, ``alie(z=1)``, or an
            attack on data and one on uploads, ``label_flip+replacement`` (:data:`plures.threat.ATTACKS`). Only honest
            clients are scored.
        attackers: who they are: a share of the clients below 1, a number of them, or names; default: 0.2.
        attack_from: first round with forged uploads.
        attack_knows: what forged uploads are computed from: the ``own`` change, those of all ``colluders``, or ``all``
            honest ones.
        fleet: devices of a simulation: ``phones``, ``hospitals`` or ``sensors`` (:data:`plures.hardware.NAMED`), with
            options or without, such as ``phones(seed=1)``; ``metadata`` for columns of the data, or a CSV file with a
            row for each client (:class:`~plures.hardware.FleetTable`).
        deadline: simulated seconds that a round waits for clients; needs a fleet.
        late: what becomes of clients that are too slow for the deadline: ``drop`` or ``partial`` work.
        over_select: how many times as many clients are asked as a round needs; needs a fleet.
        buffer: number of changes in a step of buffered asynchronous aggregation (:class:`~plures.run.Buffered`), in
            place of rounds that wait; needs a fleet.
        staleness: exponent by which old changes count less in it; default: 0.5.
        select: how clients are chosen: ``oort`` or ``power_of_choice(candidates=20)``, with options or without.
        combine: a robust combination that is added to the method, such as ``trimmed_mean(f=2)`` or
            ``bucketing+median``.

    Raises:
        PluresError: if a field is unknown, has a wrong type, or would not be used.

    Examples:
        >>> spec = plures.RunSpec(data="heart", method="ditto", parameters={"lam": 0.1}, rounds=2)
        >>> run = spec.run(spec.federation())
        >>> spec.title(), [record.round for record in run.rounds()]
        ('ditto lam=0.1', [1, 2])
    """

    data: str
    data_options: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    model_options: dict[str, Any] = Field(default_factory=dict)
    method: str = "fedavg"
    parameters: dict[str, Any] = Field(default_factory=dict)
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    rounds: int = 50
    batch_size: int | None = 32
    epochs: float | None = None
    steps: int | None = None
    clip: float | None = None
    participation: Literal["full", "uniform", "size", "poisson"] = "full"
    fraction: float | None = None
    at_most: int | None = None
    drop_out: float = 0.0
    dp: str | None = None
    seed: int = 0
    unseen: list[str] = Field(default_factory=list)
    task: str | None = None
    metric: str | list[str] | None = None
    augment: str | None = None
    evaluate_clients: int | None = None
    subgroups: list[str] = Field(default_factory=list)
    attack: str | None = None
    attackers: float | int | list[str] | None = None
    attack_from: int = 1
    attack_knows: Literal["own", "colluders", "all"] = "all"
    combine: str | None = None
    fleet: str | None = None
    deadline: float | None = None
    late: Literal["drop", "partial"] = "drop"
    over_select: float = 1.0
    buffer: int | None = None
    staleness: float | None = None
    select: str | None = None

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PluresError(explain(error, fields, type(self).model_fields)) from error

    @field_validator("batch_size")
    @classmethod
    def _whole(cls, batch_size: int | None) -> int | None:
        """TOML has no value for none."""
        return batch_size or None

    @model_validator(mode="before")
    @classmethod
    def _sampled(cls, given: Any) -> Any:
        """Fill in defaults: a fraction implies a sample, and a sample has a default fraction."""
        if not isinstance(given, dict):
            return given
        who, fraction = given.get("participation"), given.get("fraction")
        if who is None:
            return {**given, "participation": "full" if fraction in (None, 1) else "uniform"}
        return {**given, "fraction": SAMPLED} if fraction is None and who in ("uniform", "size", "poisson") else given

    @model_validator(mode="after")
    def _used(self) -> RunSpec:
        """Refuse an option that would not be used."""
        if self.participation == "full" and self.fraction not in (None, 1):
            raise PluresError(
                f"fraction={self.fraction} is not used with participation='full': use participation='uniform' (or "
                "'size', 'poisson'), or leave the fraction out"
            )
        if self.at_most is not None and self.participation != "poisson":
            raise PluresError(
                f"at_most={self.at_most} is not used with participation={self.participation!r}, whose cohorts have one "
                "size: use participation='poisson', or leave at_most out"
            )
        self._paced()
        self._private()
        if self.epochs is not None and self.steps is not None:
            raise PluresError(f"epochs={self.epochs:g}, steps={self.steps}: give one of the two")
        if called(self.optimizer)[0] != "sgd" and self.momentum:
            raise PluresError(
                f"momentum={self.momentum:g} is not used by optimizer={self.optimizer!r}, which has its own: leave it "
                "out, or use optimizer='sgd'"
            )
        self.training()
        if self.model is None and self.model_options:
            raise PluresError(f"options {self.model_options} of a network that is not named: name the model")
        given = {"attackers": None, "attack_from": 1, "attack_knows": "all"}
        for name, default in given.items() if self.attack is None else ():
            if (value := getattr(self, name)) != default:
                raise PluresError(
                    f"{name}={value!r} is not used without an attack: name one, such as attack='sign_flip'"
                )
        self.threat()
        if self.combine is not None:
            combination(self.combine)
        return self

    def federation(self, code: Code = NOTHING, task: Task | None = None) -> Federation:
        """The data, with all clients.

        Args:
            code: user code that the data, the task and the metric may name.
            task: the task as an object.

        Raises:
            PluresError: if data, task or metric cannot be found, or their options do not fit.
        """
        options = {name: value for name, value in self.data_options.items() if name != "donate"}
        load, known = find_loader(self.data, code)
        task = find_task(self.task, code) if task is None and self.task is not None else task
        if task is not None and "task" in options:
            raise PluresError(f"task={options['task']!r}: the run names a task, too; leave one of them out")
        options |= {"task": task} if task is not None and "task" in known else {}
        options |= {"subgroups": tuple(self.subgroups)} if self.subgroups and "subgroups" in known else {}
        loaded = load(**options)
        federation = self.judged(loaded if task is None else loaded.with_task(task), code)
        if "donate" not in self.data_options:
            return federation
        share = self.data_options["donate"]
        if not isinstance(share, float):
            raise PluresError(f"donate={share!r}: give the share of training rows to donate, between 0 and 1")
        seen = federation.hold_out(self.unseen)[0] if self.unseen else federation
        given = seen.donate(share)
        rest = dict(zip(given.clients, given.splits["train"], strict=True))
        train = [rest.get(*of) for of in zip(federation.clients, federation.splits["train"], strict=True)]
        return replace(federation, splits={**federation.splits, "train": Split.of(train)}, public=given.public)

    def judged(self, federation: Federation, code: Code = NOTHING) -> Federation:
        """A federation with the run's task, augmentation, subgroups and metric.

        Args:
            federation: the clients.
            code: user code that the task and the metric may name.
        """
        federation = federation if self.task is None else federation.with_task(find_task(self.task, code))
        federation = federation if self.augment is None else federation.augmented(self.augment)
        lacking = [text for text in self.subgroups if parsed(text)[0] not in federation.subgroups]
        federation = federation.with_subgroups(lacking) if lacking else federation
        return judged(federation, self.metric, code)

    def network(self, federation: Federation, code: Code = NOTHING) -> nn.Module | ModelFactory:
        """The model, or its factory.

        Args:
            federation: the clients.
            code: user code that the network may name.
        """
        return find_network(self.model, federation, self.model_options, code)

    def entry(self, code: Code = NOTHING) -> Entry:
        """The method's entry in the catalogue, or a new entry for a user-defined function.

        Args:
            code: user code that the method may name.
        """
        return find_method(self.method, code)

    def local(self) -> Optimizer:
        """The local optimizer."""
        name, options = called(self.optimizer, "optimizer")
        given = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        apart = {option: value for option, value in given.items() if value}
        if name == "adamw" and not any(text.startswith("weight_decay") for text in options or ()):
            apart["weight_decay"] = self.weight_decay
        return made("optimizer", self.optimizer, LOCAL_OPTIMIZERS, lr=self.lr, **apart)

    def training(self) -> Training:
        """Local work and rounds."""
        schedule = made("schedule", self.schedule, RATE_SCHEDULES)
        return Training(self.rounds, self.batch_size, self.epochs, self.steps, self.local(), schedule, self.clip)

    def rule(self) -> Participation:
        """Who is drawn for a round, without devices and what is known about the clients."""
        share = SAMPLED if self.fraction is None else self.fraction
        rules: dict[str, Callable[[], Participation]] = {
            "full": Full,
            "uniform": lambda: Uniform(share),
            "size": lambda: BySize(share),
            "poisson": lambda: Poisson(share, self.at_most),
        }
        rule = rules[self.participation]()
        return DropOut(rule, self.drop_out) if self.drop_out else rule

    def who(self) -> Participation:
        """Which clients take part in each round; if nothing travels, all of them."""
        rule = self._on_clock(self.rule(), None if self.fleet is None else devices(self.fleet))
        return rule if isinstance(rule, Full) else Joint(rule)

    def _on_clock(self, rule: Participation, fleet: FleetRule | None) -> Participation:
        """A rule with devices, a selection, or both; the rule itself without either."""
        select = None if self.select is None else made("selection", self.select, SELECTED)
        if fleet is None and select is None:
            return rule
        if self.buffer is None:
            return Clocked(rule, fleet, select, self.deadline, self.late, self.over_select)
        assert fleet is not None
        return Buffered(rule, fleet, self.buffer, 0.5 if self.staleness is None else self.staleness, select)

    def _paced(self) -> None:
        """Refuse options of a clock that would not be used, before a file of devices is read."""
        plain = {"deadline": None, "late": "drop", "over_select": 1.0, "buffer": None, "staleness": None}
        for name, default in plain.items():
            value = getattr(self, name)
            if value == default:
                continue
            if self.fleet is None:
                raise PluresError(
                    f"{name}={value!r} is about simulated devices, and there are none: name some, such as "
                    "fleet='phones'"
                )
            if self.buffer is not None and name in ("deadline", "late", "over_select"):
                raise PluresError(
                    f"{name}={value!r} is not used with buffer={self.buffer}, where no round waits: leave one out"
                )
            if self.buffer is None and name == "staleness":
                raise PluresError(f"staleness={value!r} is not used without a buffer: give one, such as buffer=10")
        if self.fleet is None or not is_file(self.fleet):
            self.who()
        else:
            self._on_clock(self.rule(), FleetTable())

    def threat(self) -> Threatening | None:
        """The hostile clients; ``None`` for none."""
        if self.attack is None:
            return None
        from plures.threat import threat_of  # a site describes its run with this class, and never loads attacks

        who = 0.2 if self.attackers is None else self.attackers
        return threat_of(self.attack, who, self.attack_from, self.attack_knows)

    def _private(self) -> tuple[Private | None, float | None]:
        """The stage of privacy, and the epsilon that it shall spend, if that is given in place of noise."""
        if self.dp is None:
            return None, None
        options = options_of("dp", [one.strip() for one in self.dp.split(",")], {**DP.kinds, "epsilon": float})
        wanted = options.pop("epsilon", None)
        if wanted is not None and "noise" in options:
            raise PluresError(f"dp={self.dp!r}: give epsilon or noise, not both")
        given = arguments("dp", Private, **options)
        return Private(**given.arguments), wanted

    def calibrated(self, federation: Federation) -> RunSpec:
        """The same run with a number for the noise, if an epsilon is given.

        Args:
            federation: the clients that train.
        """
        stage, wanted = self._private()
        if stage is None or wanted is None:
            return self
        plan = Plan(stage, drawn(self.who(), Setting.of(federation), self.seed))
        noise = plan.noise_for(wanted, self.rounds)
        others = [one for one in (self.dp or "").split(",") if one.partition("=")[0].strip() != "epsilon"]
        return self.model_copy(update={"dp": ",".join([*others, f"noise={noise:.6g}"])})

    def title(self) -> str:
        """The method with its combination and parameters."""
        return titled(self.method if self.combine is None else f"{self.method}+{self.combine}", self.parameters)

    def built(self, code: Code = NOTHING, entry: Entry | None = None) -> Method:
        """The method, with its combination and its privacy.

        Args:
            code: user code that the method may name.
            entry: the method's entry, if it is known already.
        """
        entry = entry or self.entry(code)
        if self.combine is None:
            method = entry(**self.parameters)
        else:
            method = (entry.fixing(**self.parameters) + combination(self.combine))()
        stage, wanted = self._private()
        if wanted is not None:
            raise PluresError(
                f"dp={self.dp!r}: the noise depends on the clients: take calibrated(federation) of this run"
            )
        if stage is not None and any(share.epsilon is not None for share in method.layout.values()):
            raise PluresError(
                f"dp={self.dp!r}: {entry.name} spends epsilon on choices of models, too, which a calibrated noise does "
                "not count: write the privacy behind the method, +dp(trust=nobody,noise=1), and read what it spends"
            )
        return method if stage is None or entry.together else method + Method(wire=(stage,))

    def run(
        self,
        federation: Federation,
        execution: Execution | None = None,
        code: Code = NOTHING,
        *,
        entry: Entry | None = None,
        model: nn.Module | ModelFactory | None = None,
        machine: Machine | None = None,
    ) -> Run:
        """A run on this federation.

        Args:
            federation: the clients.
            execution: how the machine is used.
            code: user code that the method, the network, the task and the metric may name.
            entry: the method, if it is known already.
            model: the network, if it is known already.
            machine: measurements of the machine from earlier runs.
        """
        federation = (
            self.judged(federation, code) if federation.metric is None or self.task or self.augment else federation
        )
        entry, model = entry or self.entry(code), self.network(federation, code) if model is None else model
        spec = self.calibrated(federation)
        if reason := spec.uncombined(entry, federation, model):
            raise PluresError(f"combine={self.combine!r}: {entry.name} does not take it: {reason}")
        return (PooledRun if entry.together else Run)(
            federation,
            model,
            spec.built(code, entry),
            self.training(),
            participation=Full() if entry.together else self.who(),
            seed=self.seed,
            execution=execution,
            machine=machine,
            threat=None if entry.together else self.threat(),
        )

    def uncombined(self, entry: Entry, federation: Federation, model: nn.Module | ModelFactory) -> str | None:
        """Why a method does not take the robust combination; ``None`` if it does, or there is none.

        Args:
            entry: the method.
            federation: the clients.
            model: the network.

        Raises:
            PluresError: if the federation is too small for the combination, whatever the method.
        """
        if self.combine is None:
            return None
        reducer, who = reducer_of(self.combine), self.model_copy(update={"drop_out": 0.0}).who()
        reducer.check(len(federation))
        rule = who.of(travels=True) if isinstance(who, Joint) else who
        cohort = len(rule.cohort(Setting.of(federation), self.seed, 0))
        if cohort < reducer.least:
            raise PluresError(
                f"combine={self.combine!r}: it needs the uploads of at least {reducer.least} clients, and a round has "
                f"{cohort}: draw more clients in each round{reducer.remedy.replace(':', ', or')}"
            )
        if entry.together:
            return "all data are in one place, and nothing is combined"
        plain = entry(**self.parameters)
        setting = timed(Setting.of(federation), self.who(), self.training())

        def origin(method: Method) -> Origin:
            return Origin.of(method, model, setting, federation.to("cpu"), torch.get_default_dtype())

        if not origin(plain).bound.travels:
            return "it sends nothing that could be combined"
        try:
            found = origin(self.built(entry=entry))
        except PluresError as error:
            return str(error)
        everybody = torch.arange(len(federation))
        blocks = [block for block in found.bound.blocks if found.bound.travelling(block)]
        rows = [block.share.row(found.block_state(block), everybody) for block in blocks]
        if len(federation) > 1 and all(len(set(row.tolist())) == len(federation) for row in rows):
            return "the server keeps a model for each client, so that no two uploads meet in one"
        if reducer.least > 1 and not all(block.share.common for block in blocks):
            return f"it needs at least {reducer.least} uploads to a model, and a cluster may have fewer members"
        return None

    def question(self, run: Run, held: Federation | None = None, code: Code = NOTHING, **settings: Any) -> Fingerprint:
        """Fingerprint of everything that a run with these settings depends on, apart from the machine.

        Args:
            run: the run.
            held: the clients held out of training.
            code: user code that the method and the network may name.
            settings: further settings that its result depends on.
        """
        entry = self.entry(code)
        asked = of_run(run, entry.name, entry.given(self.parameters), **settings)
        return asked if held is None else asked | {UNSEEN: of_data(held.to("cpu", run.execution.dtype))}


def is_file(fleet: str) -> bool:
    """Whether the text that describes a fleet is the name of a file."""
    return fleet.lower().endswith(".csv")


def devices(fleet: str) -> FleetRule:
    """The devices that a text describes: a name with options or without, ``metadata``, or a CSV file.

    Raises:
        PluresError: if there is no such name or file.
    """
    if is_file(fleet):
        return FleetTable.read(fleet)
    return made("fleet", fleet, {**NAMED, "metadata": FleetTable})


def combination(text: str) -> Entry:
    """The robust combination that a text names, such as ``median`` or ``bucketing(size=2)+krum(f=1)``.

    Raises:
        PluresError: if a name or an option is unknown, or the parts do not fit together.
    """
    for name in (called(one, "combination")[0] for one in pieces(text)):
        if name not in ROBUST:
            raise PluresError(f"no robust combination {name!r}; {suggestion(name, ROBUST)}")
    found = find_method(text)
    found()
    return found


def reducer_of(text: str) -> Robust:
    """The robust combination that a text names, as an object."""
    reducer = combination(text)().rules["model"].reduce
    assert isinstance(reducer, Robust)
    return reducer


def judged(federation: Federation, metric: AnyMetric, code: Code = NOTHING) -> Federation:
    """A federation that is judged by a metric; of several, the first, with the others beside it.

    Args:
        federation: the clients.
        metric: the metrics, by name or as objects; ``None`` leaves the federation as it is.
        code: user code that a name may refer to.
    """
    found = [find_metric(one, federation, code) if isinstance(one, str) else one for one in several(metric)]
    return federation.judged_by(*found) if found else federation


def several(metric: AnyMetric) -> list[str | Metric]:
    """Metrics as a list, empty for ``None``."""
    return [] if metric is None else [metric] if isinstance(metric, str | Metric) else list(metric)


def one_or_all(metrics: Sequence[str] | None) -> str | list[str] | None:
    """Names of metrics as a run states them: a single one as itself, none as ``None``."""
    return metrics[0] if metrics and len(metrics) == 1 else list(metrics or ()) or None


def find_method(name: str | Entry | Method | Callable[..., Method], code: Code = NOTHING) -> Entry:
    """Find a method by its name in the catalogue, as ``package.module:function``, as an entry or as a function.

    Names joined by ``+`` are composed: ``ifca+fedrep``. Options behind a name are fixed: ``ditto(lam=0.1)``.

    Args:
        name: name of the method, or the method.
        code: user code that a name may refer to.

    Raises:
        PluresError: if a name is neither in the catalogue nor allowed user code, or it is not a method.
    """
    if isinstance(name, Entry):
        return name
    if isinstance(name, Method):
        raise PluresError(
            "a Method object was given instead of a name or function, so it could not be tuned: give its name, its "
            "function, or functools.partial(ditto, lam=0.1) for fixed parameters"
        )
    if isinstance(name, partial):
        return find_method(name.func).fixing(*name.args, **name.keywords)
    if callable(name):
        title = getattr(name, "__name__", type(name).__name__)
        place = f"{getattr(name, '__module__', '')}:{getattr(name, '__qualname__', '<>')}"
        return Entry(title, title, "own", "your own", name, origin="" if "<" in place else place)
    if not isinstance(name, str):
        raise PluresError(
            f"{shown(name)} is not a method: give a name, such as 'ditto', or a function that returns one"
        )
    if len(several := pieces(name)) > 1:
        return replace(reduce(operator.add, (find_method(one, code) for one in several)), origin=name)
    alone, options = called(name)
    if alone == POOLED:
        raise PluresError(
            f"{POOLED!r} is no method of a federation, because it needs all data in one place: to compare with it, say "
            "pooled=True, on the command line --pooled"
        )
    if options is not None:
        return _fixed(find_method(alone, code), options)
    found = METHOD.find(name, code)
    return found if name in METHODS else replace(find_method(found), origin=name)


def _fixed(entry: Entry, options: list[str]) -> Entry:
    """A method with options that were typed behind its name."""
    return entry.fixing(**options_of(f"method {entry.name!r}", options, entry.kinds))


def distinct(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Methods by their names, each method once.

    User-defined methods that share a name with each other or with the catalogue are named ``module:function``.

    Raises:
        PluresError: if two different methods have the same name and cannot be told apart.
    """
    found: dict[str, Entry] = {}
    listed: list[Entry] = []
    for entry in entries:
        if not any(entry.name == other.name and entry.same(other) for other in listed):
            listed.append(entry)
    for entry in listed:
        alike = [other for other in listed if other.name == entry.name]
        known = METHODS.get(entry.name)
        own = (len(alike) > 1 or known is not None) and not (known is not None and entry.same(known))
        name = entry.origin if own and not entry.fixed else entry.name
        if name in found or (own and (not name or name in METHODS)):
            raise PluresError(
                f"two different methods are called {entry.name!r}: give one of them another name, for example "
                f"dataclasses.replace(plures.evaluate.spec.find_method(...), name='another')"
            )
        found[name] = replace(entry, name=name, title=name) if own else entry
    return found
