"""The schema of a ``study.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from plures.federation.partition import HOWS, READS, How
from plures.tables.declared import Name, named


def _named(value: object) -> object:
    """A single name stands for a table with that name."""
    return {"name": value} if isinstance(value, str) else value


def _labelled(value: str) -> str:
    return named(value) if value else value


Label = Annotated[str, AfterValidator(_labelled)]
"""A name, or nothing."""


def _counted(value: object) -> object:
    """A number n stands for the seeds 0 to n - 1."""
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _form(value: object) -> str:
    return "list" if isinstance(value, list) else "range"


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Range(Part):
    """Numbers between two bounds, both included; integers if both bounds are.

    Attributes:
        low: least value.
        high: largest value.
        log: whether to sample on a logarithmic scale.
    """

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = Annotated[
    Annotated[list[Any], Field(min_length=1), Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_form)
]
"""Values to try: a list, or a table with ``low``, ``high`` and optionally ``log = true``."""
Space = Mapping[str, list[Any] | Range]


class SplitPart(Part):
    """The shares of a client's examples; see :class:`~plures.federation.SplitRule`."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.25
    by: Literal["random", "time"] = "random"


class DataPart(Part):
    """A data set.

    Attributes:
        name: catalogue name; or a table, or a folder of tables, pictures or ``.npz`` files, relative to the file of the
            study.
        label: name in results; default: its name.
        options: of the loader, such as the columns ``client`` and ``target`` of a table; ``donate`` is the share of
            training rows that every client makes public.
        split: how the loader, or the partition, splits.
        model: name of a network; default: one that fits the data.
        model_options: options of the network.
        unseen: clients held out of training.
        max_clients: number of clients to keep, drawn once.
        max_examples: most examples to keep per client, drawn once from each split in proportion.
        partitions: labels of the partitions it is used with; default: all of the file.
        task: what is predicted, with the loss of all methods: ``module:name`` of a user's task, or the name of a kind;
            default: the task of the data.
        metric: metric by which rounds and settings are chosen; default: the task's first metric. Of a list, the first
            is that metric, and the others are reported beside it.
        augment: random changes of training batches, such as ``"crop(4)+flip"``.
    """

    name: str
    label: Label = ""
    options: dict[str, Any] = Field(default_factory=dict)
    split: SplitPart | None = None
    model: str | None = None
    model_options: dict[str, Any] = Field(default_factory=dict)
    unseen: list[str] = Field(default_factory=list)
    max_clients: Annotated[int | None, Field(ge=1)] = None
    max_examples: Annotated[int | None, Field(ge=3)] = None
    partitions: list[str] | None = None
    task: str | None = None
    metric: str | list[str] | None = None
    augment: str | None = None

    @property
    def measured(self) -> list[str]:
        """The metrics that are named."""
        return [self.metric] if isinstance(self.metric, str) else self.metric or []


class ShiftPart(Part):
    """Feature shift, one entry per group of clients; see :mod:`plures.federation.shift`."""

    rotate: Annotated[list[float] | None, Field(min_length=1)] = None
    brightness: Annotated[list[float] | None, Field(min_length=1)] = None
    noise: Annotated[list[float] | None, Field(min_length=1)] = None


class QualityPart(Part):
    """Degraded inputs; see :func:`plures.federation.degrade`."""

    completeness: Annotated[float, Field(gt=0, le=1)] = 1.0
    noise: Annotated[float, Field(ge=0)] = 0.0
    how: Literal["zero", "mean"] = "zero"


class PartitionPart(Part):
    """Assignment of examples to clients.

    Attributes:
        how: ``natural`` keeps the clients of the data set; the others are those of
            :func:`plures.federation.partition.partition`, over the pooled rows of the data set.
        label: name in results; default: its kind and numbers.
        clients: how many.
        alpha: concentration of the two Dirichlet partitions and of ``quantity``.
        classes_per_client: for ``pathological``.
        min_size: least number of rows of a client, for ``dirichlet_per_class`` and ``quantity``.
        seed: of the partition and of the splits after it.
        shift: feature shift between groups of clients.
        quality: missing values and noise.
    """

    how: Literal["natural"] | How = "natural"
    label: Label = ""
    clients: Annotated[int | None, Field(ge=1)] = None
    alpha: Annotated[float | None, Field(gt=0)] = None
    classes_per_client: Annotated[int | None, Field(ge=1)] = None
    min_size: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0
    shift: ShiftPart | None = None
    quality: QualityPart | None = None

    @property
    def dealing(self) -> dict[str, Any]:
        """The partition parameters that were given."""
        return self.model_dump(include={"clients", "alpha", "classes_per_client", "min_size"}, exclude_none=True)


DEALING: Mapping[str, frozenset[str]] = {
    "natural": frozenset(),
    **{how: READS[how] | {"clients"} for how in HOWS},
}
"""The parameters of each partition."""


class MethodPart(Part):
    """A method.

    Attributes:
        name: catalogue name, ``package.module:function``, or such names joined by ``+``.
        label: name in results; default: its name.
        lr: fixed learning rate, which is then not tuned.
        parameters: fixed parameters.
        space: what to search, instead of the catalogue's ``space``; may include ``lr``.
        data: labels of the data sets it is used with; default: all.
    """

    name: str
    label: Label = ""
    lr: Annotated[float | None, Field(gt=0)] = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Choices] | None = None
    data: list[str] | None = None

    @property
    def title(self) -> str:
        return self.label or self.name


CLOCKED = ("fleet", "deadline", "late", "over_select", "buffer", "staleness", "select")
"""Keys of a budget about simulated devices and the selection of clients."""


class BudgetPart(Part):
    """The budget of a final run; names as in :class:`~plures.evaluate.RunSpec`.

    Attributes:
        label: name in results; default: its rounds.
        batch_size: examples in a batch; 0 for all.
        fraction: share of the clients in a round.
        participation: how they are drawn: ``uniform``, by ``size`` or ``poisson``; default: ``uniform`` if the fraction
            is below 1.
        at_most: largest cohort of ``poisson``; default: no limit.
        drop_out: probability that a client of a cohort stays away in a round, simulated.
        dp: differential privacy: ``"clip=0.5,noise=1"``, or ``"clip=0.5,epsilon=8"`` for these rounds; default: none.
        optimizer: local optimizer, with options or without: ``"sgd(nesterov=true)"``.
        schedule: schedule of the learning rate, with options or without: ``"cosine(final=0.1)"``.
        every: rounds between validations; default: about ten validations.
        patience: end a run when this many rounds have brought no better validation than its best one; default: run all
            rounds. Trials run all of theirs.
        attack: simulated attack of hostile clients, such as ``"alie(z=1)"``; only honest clients are scored.
        attackers: who attacks: a share of the clients below 1, a number of them, or names; default: 0.2.
        attack_from: first round with forged uploads.
        attack_knows: what they are computed from: ``own``, ``colluders`` or ``all``.
        combine: robust combination, added to every method that takes it, such as ``"trimmed_mean(f=2)"``.
        fleet: simulated devices: ``"phones"``, ``"metadata"`` or a CSV file with a row for each client.
        deadline: simulated seconds that a round waits.
        late: what becomes of clients that are too slow for it: ``drop`` or ``partial``.
        over_select: how many times as many clients are asked as a round needs.
        buffer: number of changes in a step of buffered asynchronous aggregation.
        staleness: exponent by which old changes count less in it; default: 0.5.
        select: how clients are chosen: ``"oort"`` or ``"power_of_choice(candidates=20)"``.
    """

    label: Label = ""
    rounds: Annotated[int, Field(ge=1)] = 20
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int | None, Field(ge=1)] = None
    batch_size: Annotated[int, Field(ge=0)] = 32
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    participation: Literal["full", "uniform", "size", "poisson"] | None = None
    at_most: Annotated[int | None, Field(ge=1)] = None
    drop_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dp: str | None = None
    optimizer: str = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: str = "constant"
    clip: Annotated[float | None, Field(gt=0)] = None
    every: Annotated[int | None, Field(ge=1)] = None
    patience: Annotated[int | None, Field(ge=1)] = None
    attack: str | None = None
    attackers: float | int | list[str] | None = None
    attack_from: Annotated[int, Field(ge=1)] = 1
    attack_knows: Literal["own", "colluders", "all"] = "all"
    combine: str | None = None
    fleet: str | None = None
    deadline: Annotated[float | None, Field(gt=0)] = None
    late: Literal["drop", "partial"] = "drop"
    over_select: Annotated[float, Field(ge=1)] = 1.0
    buffer: Annotated[int | None, Field(ge=1)] = None
    staleness: Annotated[float | None, Field(ge=0)] = None
    select: str | None = None


class TuningPart(Part):
    """How settings are chosen on validation data, with seed 0.

    Attributes:
        trials: settings tried for each method on each cell; 0 tunes nothing.
        rounds: rounds of a trial.
        lr: learning rates to try.
        search: ``optuna`` (tree-structured Parzen estimator), ``random`` (also by Optuna), ``grid`` (one setting after
            the other, like `plures compare`; not limited by ``trials``), or ``auto``: Optuna if it is installed, else
            the grid.
        pruning: ``median`` or ``halving`` stop a trial that falls behind; the grid does not prune.
        every: rounds between validations in a trial; default: about four validations.
    """

    trials: Annotated[int, Field(ge=0)] = 10
    rounds: Annotated[int, Field(ge=1)] = 5
    lr: Choices = Field(default_factory=lambda: [0.03, 0.1, 0.3])
    search: Literal["auto", "optuna", "random", "grid"] = "auto"
    pruning: Literal["median", "halving", "none"] = "median"
    every: Annotated[int | None, Field(ge=1)] = None


class ExecutionPart(Part):
    """How the machine is used; see :class:`~plures.run.Execution`.

    ``auto`` settings are measured once for a method on a cell, and reused for all its runs. Two studies give the same
    bits only if backend and chunk are fixed here, because measurements vary.

    Attributes:
        threads: threads of a process; default: all cores.
        ray: the Ray cluster that trains clients; ``--ray`` names another one.
        lease: seconds without a heartbeat after which another process takes over a process's work.
    """

    backend: Literal["auto", "loop", "vmap"] = "auto"
    chunk: int | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = False
    device: str = "cpu"
    threads: Annotated[int | None, Field(ge=1)] = None
    ray: str | None = None
    lease: Annotated[float, Field(gt=0)] = 60.0
    checkpoint_every: Annotated[int, Field(ge=1)] = 10


class Document(Part):
    """A study: every data set with each of its partitions and every budget is a cell; every method runs on each."""

    name: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_counted), Field(min_length=1)] = [0, 1, 2]
    data: list[Annotated[DataPart, BeforeValidator(_named)]] = Field(min_length=1)
    partitions: list[PartitionPart] = Field(default_factory=lambda: [PartitionPart()], min_length=1)
    methods: list[Annotated[MethodPart, BeforeValidator(_named)]] = Field(default_factory=list)
    budgets: list[BudgetPart] = Field(default_factory=lambda: [BudgetPart()], min_length=1)
    tuning: TuningPart = Field(default_factory=TuningPart)
    execution: ExecutionPart = Field(default_factory=ExecutionPart)
    keep_models: bool = True
