"""Options that belong together: an object that the parser fills, and that each command passes on as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, Literal, get_type_hints

from plures.cli.common import (
    AtMost,
    Attackers,
    AttackFrom,
    AttackKnows,
    AttackName,
    AugmentName,
    Backend,
    BatchSize,
    BufferSize,
    Capture,
    Chunk,
    ClientColumn,
    Clip,
    CombineName,
    Compile,
    Deadline,
    Device,
    Drawn,
    DropOuts,
    Epochs,
    EvaluateClients,
    FeaturesOnce,
    FleetName,
    Fold,
    Fraction,
    Group,
    Late,
    MetricName,
    Model,
    ModelOptions,
    Momentum,
    Numbers,
    OptimizerName,
    Options,
    OverSelect,
    Privacy,
    RayAddress,
    ScheduleName,
    SchemaFile,
    SelectName,
    SplitColumn,
    Staleness,
    Steps,
    SubgroupColumn,
    Target,
    TaskName,
    TestRows,
    Time,
    Unseen,
    WeightDecay,
    model_settings,
    settings,
    who,
)
from plures.errors import PluresError
from plures.evaluate.code import Code
from plures.evaluate.own import find_loader
from plures.evaluate.spec import one_or_all
from plures.run import Execution
from plures.tables import is_table


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command in whose place the parser sees the fields of its dataclass parameters, each an option of its own.

    The command itself gets the objects.

    Examples:
        >>> @spread
        ... def show(data: DataOptions) -> None:
        ...     print(data.client, data.group)
        >>> show(client="ward")
        ward None
    """
    hints = get_type_hints(command, include_extras=True)
    groups: Mapping[str, type] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}  # type: ignore[misc]
    seen: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name not in groups:
            seen.append(parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY))
            continue
        own = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            seen.append(
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name])
            )

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind) if field.name in given})
            for name, kind in groups.items()
        }
        command(**given, **made)

    called.__signature__ = Signature(seen)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in seen}
    return called


@dataclass(frozen=True)
class DataOptions:
    """How data are read: the columns of a table and how its rows are divided, and options of any loader.

    Attributes:
        data_options: ``NAME=VALUE`` texts; the other options are for tables, see :func:`plures.from_table`.
    """

    client: ClientColumn = None
    target: Target = None
    group: Group = None
    time: Time = None
    test: TestRows = None
    split_column: SplitColumn = None
    fold: Fold = None
    schema: SchemaFile = None
    data_options: Options = None

    def settings(self, data: str) -> dict[str, Any]:
        """Options of the loader of some data, by name.

        Raises:
            PluresError: for an option of a table with data that are none, an unknown one, or one given twice.
        """
        target = self.target or None
        of_table = vars(self) | {"target": target[0] if target and len(target) == 1 else target}
        del of_table["data_options"]
        given = {name: value for name, value in of_table.items() if value is not None}
        if given and not is_table(data):
            option = f"--{next(iter(given)).replace('_', '-')}"
            raise PluresError(f"{option} is for a table, a CSV or Parquet file or a folder of them; {data!r} is none")
        kinds = {**find_loader(data, Code.typed(data))[1], "donate": float}
        found = settings(self.data_options, "--data", f"data {data!r}", kinds)
        if both := [name for name in given if name in found]:
            raise PluresError(f"--data {both[0]}: is given as an option, too; give it once")
        return {**given, **found}


@dataclass(frozen=True)
class WorkOptions:
    """What is trained and scored: the network, the work of a visit, who takes part, task and metrics."""

    optimizer: OptimizerName = "sgd"
    momentum: Momentum = 0.0
    weight_decay: WeightDecay = 0.0
    schedule: ScheduleName = "constant"
    clip: Clip = None
    model: Model = None
    model_options: ModelOptions = None
    batch_size: BatchSize = 32
    epochs: Epochs = None
    steps: Steps = None
    fraction: Fraction = None
    participation: Drawn = None
    at_most: AtMost = None
    drop_out: DropOuts = 0.0
    dp: Privacy = None
    unseen: Unseen = None
    task: TaskName = None
    metric: MetricName = None
    subgroup: SubgroupColumn = None
    augment: AugmentName = None
    evaluate_clients: EvaluateClients = None
    attack: AttackName = None
    attackers: Attackers = None
    attack_from: AttackFrom = 1
    attack_knows: AttackKnows = "all"
    combine: CombineName = None
    fleet: FleetName = None
    deadline: Deadline = None
    late: Late = "drop"
    over_select: OverSelect = 1.0
    buffer: BufferSize = None
    staleness: Staleness = None
    select: SelectName = None

    @property
    def named(self) -> tuple[str | None, ...]:
        """The names that it holds, which may be those of the user's own code."""
        return (self.model, self.task, *(self.metric or ()))

    def settings(self) -> dict[str, Any]:
        """Settings of a :class:`~plures.RunSpec`, by name; a visit is one epoch unless something is said."""
        said = {name: value for name, value in vars(self).items() if name != "subgroup"}
        return said | {
            "subgroups": self.subgroup or [],
            "model_options": model_settings(self.model_options, self.model),
            "batch_size": self.batch_size or None,
            "epochs": 1.0 if self.epochs is None and self.steps is None else self.epochs,
            "unseen": self.unseen or [],
            "metric": one_or_all(self.metric),
            "attackers": who(self.attackers),
        }


@dataclass(frozen=True)
class MachineOptions:
    """How a command uses the machine; what is not said is measured."""

    backend: Backend = "auto"
    chunk: Chunk = 0
    compile_step: Compile = None
    capture: Capture = None
    features: FeaturesOnce = None
    precision: Numbers = "auto"
    device: Device = "auto"
    ray: RayAddress = None

    def execution(self, processes: int | None) -> Execution:
        """The execution on a number of processes; ``None`` for one, or all that a Ray cluster has room for."""

        def said(wanted: bool | None) -> bool | Literal["auto"]:
            return "auto" if wanted is None else wanted

        return Execution(
            self.backend,
            self.chunk or "auto",
            said(self.compile_step),
            self.precision,
            device=self.device,
            processes="auto" if processes is None else processes,
            capture=said(self.capture),
            features=said(self.features),
            ray=self.ray,
        )
