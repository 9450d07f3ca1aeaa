"""The clients and their data: flat tensors, and for every client the rows it owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.augment import Augment, Part, augment_of
from plures.augment.augment import Wanted, Within, within
from plures.content import by_content
from plures.devices import find
from plures.errors import PluresError, suggestion
from plures.federation.describe import Description, describe
from plures.federation.inputs import Features, Inputs, like, one_tensor, parts, shape_of, shape_text
from plures.federation.mapped import Mapped
from plures.federation.preparation import Preparation
from plures.federation.scaling import Scaling, scaled, unscaled
from plures.federation.seeding import generator
from plures.federation.splits import SPLITS, Split, SplitName
from plures.federation.subgroups import Subgroups, parsed, subgroups_of
from plures.metrics import Metric
from plures.names import Names, check_words, name_of
from plures.notebook import LISTED as SHOWN
from plures.notebook import notebook
from plures.tasks import Task


@by_content
@dataclass(frozen=True)
class Federation:
    """The clients, their examples and their metadata.

    Examples of all clients are stored in flat tensors; a client is the rows it owns in each split. Clients are kept in
    the natural order of their names ("ward 2" before "ward 10"), so that nothing depends on the order of the data.
    Clients that train need training examples; an unseen client may have none.

    Attributes:
        name: its name in reports.
        task: what is predicted.
        inputs: ``(examples, *features)``; floating point, or integers for tokens. Several by name
            (:class:`~plures.federation.Inputs`), such as tokens and their mask, if a network reads more than one.
        targets: in the task's format: ``(examples,)`` int64 for classification, ``(examples, outputs)`` floating
            point for regression, ``(examples, labels)`` of 0 and 1 for several labels.
        clients: client names, in natural order.
        splits: the rows of every client in ``train``, ``validation`` and ``test``.
        metadata: one column per key, one entry per client, in the order of ``clients``.
        source: origin and licence of the data, for reports.
        columns: names of the entries of the inputs' first feature dimension (columns, channels); may be empty.
        scaling: what was subtracted from the inputs and what they were then divided by, for each entry of the first
            feature dimension; of several inputs, by name, of those that are scaled; ``None`` for unscaled data.
        preparation: how raw rows become numbers without gaps, and the scale of the targets; ``None`` for data that
            came as numbers and have neither gaps nor standardised targets.
        public: ``(n,)`` int64 rows that the server holds and everybody may see; no client owns them (:meth:`donate`).
        metric: the metric by which rounds and settings are chosen and clients are called harmed; ``None`` for the
            task's first metric (:meth:`judged_by`).
        beside: further metrics that are reported, before those that the task always has (:meth:`judged_by`).
        weights: ``(examples,)`` how much each example counts, positive and floating point; ``None`` if all count alike.
            Only ratios within a client matter. The loss of a batch is ``sum_i w_i l_i / sum_i w_i``, and metrics are
            weighted in the same way; numbers of examples, and so the weights of clients, stay counts.
        augment: how batches are changed at random when a client trains; ``None`` for not at all (:meth:`augmented`).
        subgroups: column -> the subgroup of every example. Results are reported for each, and no model reads them
            (:meth:`with_subgroups`).

    Examples:
        >>> heart = plures.load("heart")
        >>> len(heart), heart.task.classes
        (4, ('healthy', 'disease'))
        >>> seen, later = heart.hold_out(["va"])
        >>> seen.clients, later.clients
        (('cleveland', 'hungarian', 'switzerland'), ('va',))
    """

    name: str
    task: Task
    inputs: Tensor | Inputs
    targets: Tensor
    clients: tuple[str, ...]
    splits: Mapping[SplitName, Split]
    metadata: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    source: str = ""
    columns: tuple[str, ...] = ()
    scaling: Scaling | None = None
    preparation: Preparation | None = None
    public: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    metric: Metric | None = None
    beside: tuple[Metric, ...] = ()
    weights: Tensor | None = None
    augment: Augment | None = None
    subgroups: Mapping[str, Subgroups] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_words([self.name], "federation")
        if not self.clients:
            raise PluresError(f"federation {self.name!r} has no clients: give at least one")
        object.__setattr__(self, "clients", Names.checked(self.clients, f"federation {self.name!r}"))
        check_words(self.columns, "column")
        check_words(map(str, self.metadata), "metadata column")
        if self.task.outputs < 1:
            raise PluresError(f"federation {self.name!r}: {self.task.kind} without {self.task.called}; give at least 1")
        if tuple(self.targets.shape[1:]) != self.task.target:
            raise PluresError(
                f"federation {self.name!r}: the target of an example has shape {tuple(self.targets.shape[1:])}, but "
                f"{self.task.kind} needs {self.task.target}"
            )
        if self.targets.is_floating_point() != self.task.number.is_floating_point:
            raise PluresError(
                f"federation {self.name!r}: targets of type {self.targets.dtype}, but this {self.task.kind} has "
                f"{self.task.number}"
            )
        for inputs in parts(self.inputs):
            if len(inputs) != len(self.targets):
                raise PluresError(
                    f"federation {self.name!r}: {len(inputs)} inputs but {len(self.targets)} targets; they must match"
                )
        if self.weights is not None and (
            self.weights.shape != self.targets.shape[:1] or not self.weights.is_floating_point()
        ):
            raise PluresError(
                f"federation {self.name!r}: weights of shape {tuple(self.weights.shape)} and type {self.weights.dtype} "
                f"for {len(self.inputs)} examples; give a floating-point number for each"
            )
        for column, groups in self.subgroups.items():
            if len(groups.codes) != len(self.targets):
                raise PluresError(
                    f"federation {self.name!r}: subgroups {column!r} of {len(groups.codes)} examples, but there are "
                    f"{len(self.targets)}; they must match"
                )
        for split in SPLITS:
            if split not in self.splits or len(self.splits[split]) != len(self.clients):
                raise PluresError(f"federation {self.name!r}: split {split!r} must list the rows of every client")
        if self.columns and len(self.columns) != (wide := self.one_input("columns").shape[1]):
            raise PluresError(f"federation {self.name!r}: {len(self.columns)} column names for {wide} input columns")
        for column, values in self.metadata.items():
            if len(values) != len(self.clients):
                raise PluresError(f"metadata column {column!r}: {len(values)} values for {len(self.clients)} clients")
        if self.augment is not None:
            self._check_augment(self.augment)
        self._check_devices()
        self._check_values()
        if self.weights is not None and bool((self.weights == 1).all()):
            object.__setattr__(self, "weights", None)

    @property
    def names(self) -> Names:
        """The clients' names, for lookups."""
        assert isinstance(self.clients, Names)
        return self.clients

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics of the clients; rounds and settings are chosen by the first one."""
        first, *rest = self.task.metrics
        always = rest if self.metric is None else self.task.metrics
        said = (first if self.metric is None else self.metric, *self.beside)
        return (*said, *(metric for metric in always if metric not in said))

    def metric_of(self, name: str) -> Metric | None:
        """The metric of a name: one of :attr:`metrics`, else one of the task's further ones; else ``None``."""
        return {one.name: one for one in self.metrics}.get(name) or self.task.further.find(name)

    def judged_by(self, metric: str | Metric | None, *beside: str | Metric) -> Federation:
        """The same federation with another metric by which rounds and settings are chosen.

        Args:
            metric: the name of one of :attr:`metrics` or of the task's further ones, or a metric of your own; ``None``
                for the task's first.
            beside: further metrics, which are reported beside it and choose nothing.

        Examples:
            >>> import plures
            >>> federation = plures.load("heart").judged_by("auroc", "sensitivity")
            >>> [metric.name for metric in federation.metrics][:4]
            ['auroc', 'sensitivity', 'accuracy', 'loss']
        """
        known = {one.name: one for one in self.metrics}
        said: dict[str, Metric] = {}
        for wanted in (self.task.metrics[0] if metric is None else metric, *beside):
            found = self._named(wanted) if isinstance(wanted, str) else wanted
            if found.name in said:
                raise PluresError(f"metric {found.name!r} is named twice; name it once")
            if known.setdefault(found.name, found) != found:
                raise PluresError(f"metric {found.name!r}: there is another metric of this name; rename yours")
            said[found.name] = found
        first, *rest = said.values()
        return replace(self, metric=None if first == self.task.metrics[0] else first, beside=tuple(rest))

    def _named(self, metric: str) -> Metric:
        """The metric of a name, or one sentence that there is none."""
        found = self.metric_of(metric)
        if found is None:
            names = [*(one.name for one in self.metrics), *self.task.further.names]
            kind = f"{self.task.kind} in {many} classes" if (many := len(self.task.classes)) else self.task.kind
            raise PluresError(f"no metric {metric!r} for {kind}; {suggestion(metric, names, 'metrics are')}")
        return found

    def _check_augment(self, augment: Augment) -> None:
        """Refuse augmentations that cannot change the inputs."""
        several = self.inputs.parts if isinstance(self.inputs, Inputs) else None
        for change in augment.parts:
            given, part = self.inputs, change
            if isinstance(change, Within):
                if several is None or change.name not in several:
                    held = "one tensor" if several is None else ", ".join(several)
                    raise PluresError(f"augmentation of input {change.name!r}: federation {self.name!r} has {held}")
                given, part = several[change.name], change.change
            if isinstance(part, Part):
                one = one_tensor(given, f"augmentation {part.name}")
                part.check(tuple(one.shape[1:]), one.dtype, self.task.target)

    def _check_devices(self) -> None:
        rows = {f"rows of the {split} split": index.rows for split, index in self.splits.items()}
        given = {} if self.weights is None else {"weights": self.weights}
        more = {f"input {n}": t for n, t in enumerate(parts(self.inputs)[1:], start=2)}
        for what, tensor in {"targets": self.targets, **more, **given, **rows, "public rows": self.public}.items():
            if tensor.device != self.inputs.device:
                raise PluresError(
                    f"federation {self.name!r}: its {what} are on {tensor.device}, its inputs on {self.inputs.device}; "
                    "build it on one device and move it as a whole with Federation.to"
                )

    def _check_values(self) -> None:
        owned = torch.cat([*(split.rows for split in self.splits.values()), self.public])
        if owned.numel() and (int(owned.min()) < 0 or int(owned.max()) >= len(self.inputs)):
            raise PluresError(f"federation {self.name!r}: a split names a row outside the {len(self.inputs)} examples")
        bad = torch.zeros(len(self.inputs), dtype=torch.bool, device=self.inputs.device)
        for inputs in parts(self.inputs):
            if isinstance(inputs, Mapped):
                bad |= inputs.bad().to(bad.device)
            elif inputs.is_floating_point():
                bad |= ~torch.isfinite(inputs).flatten(1).all(1)
        self._refuse(*self.task.faults(self.targets))
        if self.weights is not None:
            wrong = ~((self.weights > 0) & self.weights.isfinite())
            self._refuse(wrong, "a weight that is not a positive number; correct it or leave the row out")
        self._refuse(bad, 'a NaN or an infinite value; clean the data or build the federation with missing="impute"')

    def _refuse(self, bad: Tensor, what: str) -> None:
        for split, index in self.splits.items():
            wrong = bad[index.rows]
            if bool(wrong.any()):
                place = int(wrong.int().argmax())
                client = self.clients[int(index.owners[place])]
                raise PluresError(f"client {client!r}, {split} split, row {int(index.rows[place])}: {what}")
        if bool(bad[self.public].any()):
            raise PluresError(f"public row {int(self.public[bad[self.public]][0])}: {what}")

    def __len__(self) -> int:
        return len(self.clients)

    def __repr__(self) -> str:
        """One line without data: tracebacks, logs and notebooks print it."""
        sizes = ", ".join(f"{split} {len(index.rows)}" for split, index in self.splits.items())
        kind = f"{self.task.kind}, {self.task.outputs} {self.task.called}"
        return f"<Federation {self.name!r}: {len(self)} clients, {sizes}; {kind}; inputs {shape_text(self.features)}>"

    def _repr_html_(self) -> str:
        """The clients and the sizes of their splits, for notebooks; no data."""
        sizes = [self.splits[split].sizes[:SHOWN].tolist() for split in SPLITS]
        rows = [[name, *map(str, of)] for name, *of in zip(self.clients[:SHOWN], *sizes, strict=True)]
        rows += [[]] * (len(self) - len(rows))
        kind = f"{self.task.kind}, {self.task.outputs} {self.task.called}; inputs {shape_text(self.features)}"
        return notebook(f"Federation {self.name}: {len(self)} clients", [kind], ["client", *SPLITS], rows)

    @property
    def features(self) -> Features:
        """Shape of one example's input; of several inputs, their shapes by name."""
        return shape_of(self.inputs)

    def one_input(self, what: str) -> Tensor:
        """The inputs, if they are one tensor; a federation with several inputs is refused.

        Args:
            what: what needs one tensor, for the message.
        """
        return one_tensor(self.inputs, f"federation {self.name!r}: {what}")

    def index(self, client: str | int) -> int:
        """Position of a client by its name; an integer stands for the name with the same digits."""
        return position(client, self.clients, f" in federation {self.name!r}")

    def scaled(self, raw: Any) -> Tensor | Inputs:
        """Raw rows as inputs ``(n, *features)`` of this federation, using what was fitted to its data.

        If missing values were imputed, give the original columns: missing values (NaN) are imputed as in the data, and
        the indicator inputs are added.

        Args:
            raw: numbers ``(n, *features)``, or a table with the columns that the data had: column -> values, or a frame
                of pandas or polars. Its columns may be in any order. Several inputs as ``Inputs``, or as a mapping of
                their names to tensors or arrays.

        Raises:
            PluresError: among others for a missing or an unknown column, and a value that did not occur in the data.
        """
        declared = None if self.preparation is None else self.preparation.schema
        if declared is not None and not isinstance(raw, Tensor | Inputs) and not given_by_name(raw, self.inputs):
            found = declared.encode(raw)
            if isinstance(self.inputs, Inputs):
                return like(found, self.inputs, self.name)
            return one_tensor(found, "the schema").to(self.inputs.device, self.inputs.dtype)
        if isinstance(self.inputs, Inputs):
            return like(scaled(like(raw, self.inputs, self.name), self.scaling), self.inputs, self.name)
        rows = raw if isinstance(raw, Tensor) else one_tensor(self.encoded(raw), "a table")
        if self.preparation is not None:
            rows = self.preparation.completed(rows, self.columns)
        if tuple(rows.shape[1:]) != self.features:
            raise PluresError(f"inputs have shape {tuple(rows.shape[1:])}, but {self.name!r} has {self.features}")
        return scaled(rows.to(self.inputs.device, self.inputs.dtype), self.scaling)

    def encoded(self, table: Any) -> Tensor | Inputs:
        """Rows of a table as numbers ``(n, columns)``, neither imputed nor scaled; see :meth:`scaled`."""
        several = isinstance(self.features, dict) and (self.preparation is None or self.preparation.schema is None)
        if several or (isinstance(self.features, tuple) and len(self.features) != 1):
            raise PluresError(f"inputs of {self.name!r} have shape {self.features}: give them as numbers, not a table")
        return (self.preparation or Preparation()).encoded(table, self.columns)

    def unscaled(self, inputs: Tensor | Inputs) -> Tensor | Inputs:
        """Inverse of :meth:`scaled` up to rounding, as numbers: NaN where a value was missing."""
        raw = unscaled(inputs, self.scaling)
        return raw if self.preparation is None or isinstance(raw, Inputs) else self.preparation.emptied(raw)

    def in_units(self, outputs: Tensor) -> Tensor:
        """Predicted numbers ``(n, outputs)`` in the target's own units; all other outputs unchanged."""
        return outputs if self.preparation is None else self.preparation.in_units(outputs)

    def subset(self, clients: Sequence[str | int]) -> Federation:
        """The same data restricted to some clients (in their natural order); tensors are shared, not copied."""
        if isinstance(clients, str):
            raise PluresError(f"clients={clients!r}: give a list of names, [{clients!r}]")
        return self.take(sorted({self.index(client) for client in clients}))

    def take(self, chosen: Sequence[int]) -> Federation:
        """The same data restricted to the clients at some positions, in increasing order."""
        return replace(
            self,
            clients=self.names.some(chosen),
            splits={split: index.take(chosen) for split, index in self.splits.items()},
            metadata={key: tuple(column[i] for i in chosen) for key, column in self.metadata.items()},
        )

    def together(self, name: str) -> Federation:
        """The federation of one client that has all examples of all clients; their metadata are left out.

        Args:
            name: of that client.
        """
        splits = {split: Split.of([index.rows]) for split, index in self.splits.items()}
        return replace(self, clients=(name,), splits=splits, metadata={})

    def hold_out(self, clients: Sequence[str | int]) -> tuple[Federation, Federation]:
        """``(seen, unseen)``: the federation without the given clients, and those clients alone."""
        unseen = self.subset(clients)
        seen = [place for place, name in enumerate(self.clients) if name not in unseen.names.places]
        if not seen:
            raise PluresError("every client is held out: keep at least one in the federation")
        return self.take(seen), unseen

    def with_task(self, task: Task) -> Federation:
        """The same examples for another task, such as one that weighs classes or has a loss of its own.

        Args:
            task: what is predicted; options that the data determine, such as the names of classes, may be left out.

        Examples:
            >>> import plures
            >>> from plures.tasks import Classification
            >>> heart = plures.load("heart").with_task(Classification(class_weights={"disease": 2}))
            >>> heart.task.class_weights
            (1.0, 2.0)
        """
        if not isinstance(task, Task):
            raise PluresError(f"task={task!r}: give a plures.Task, such as plures.Classification()")
        try:
            return replace(self, task=task.completed(self.task))
        except PluresError as error:
            raise PluresError(f"federation {self.name!r}: {error}") from error

    def with_subgroups(self, given: str | Sequence[str] | Mapping[str, Any]) -> Federation:
        """The same examples, whose results are also reported by subgroups, such as sex and age bands.

        A column of numbers with more than six different values is cut into bands: at the edges behind its name, as in
        ``age:40,60``, or else into three of about as many train rows each. Examples without a value are a subgroup
        named ``missing``.

        Args:
            given: names of input columns; or columns that are no inputs, column -> the value of every example
                ``(examples,)``, in the order of :attr:`inputs`.

        Raises:
            PluresError: if there is no such column, or a column has more than 20 different texts.

        Examples:
            >>> heart = plures.load("heart").with_subgroups(["sex", "age:50,60"])
            >>> {column: groups.names for column, groups in heart.subgroups.items()}
            {'sex': ('0', '1'), 'age': ('below 50', '50 to below 60', '60 or more')}
        """
        names = [given] if isinstance(given, str) else list(given)
        train = self.splits["train"].rows.cpu().numpy()
        found = dict(self.subgroups)
        for text in names:
            column, edges = parsed(text)
            values = given[text] if isinstance(given, Mapping) else self._column(column)
            values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            if len(values) != len(self.targets):
                raise PluresError(
                    f"subgroups {column!r}: {len(values)} values for {len(self.targets)} examples; they must match"
                )
            found[column] = subgroups_of(column, values, edges, train)
        return replace(self, subgroups=found)

    def _column(self, column: str) -> np.ndarray[Any, Any]:
        """The values of an input column in its own units: numbers, or the levels of a category."""
        names = self.columns
        prefix, missing = f"{column}=", f"{column} is missing"
        levels = [place for place, name in enumerate(names) if name.startswith(prefix)]
        if column not in names and not levels:
            derived = (" is missing", " is another value")
            texts = dict.fromkeys(name.partition("=")[0] for name in names if not name.endswith(derived))
            texts |= dict.fromkeys(self.subgroups)
            known = suggestion(column, list(texts), "its columns are") if texts else "its inputs have no columns"
            raise PluresError(
                f"subgroups: federation {self.name!r} has no input column {column!r}; {known} (for another "
                "column, give with_subgroups the value of every example)"
            )
        inputs = self.one_input("subgroups")
        places = [*([names.index(missing)] if missing in names else []), *(levels or [names.index(column)])]
        moments = self.scaling if isinstance(self.scaling, tuple) else None
        mean, scale = moments or (torch.zeros(len(names)), torch.ones(len(names)))
        own = (inputs[:, places].double().cpu() * scale[places].double() + mean[places].double()).numpy()
        gaps = own[:, 0] > 0.5 if missing in names else np.zeros(len(own), dtype=bool)
        own = own[:, len(places) - max(1, len(levels)) :]
        if levels:
            said = np.array([names[place].removeprefix(prefix) for place in levels], dtype=object)
            found: np.ndarray[Any, Any] = said[own.argmax(1)]
            gaps = gaps | (own.max(1) <= 0.5)
        else:
            found = (own[:, 0].round(6) + 0.0).astype(object)
        found[gaps] = None
        return found

    def augmented(self, augment: Wanted | None) -> Federation:
        """The same examples, changed at random whenever a client trains on them, and never when they are predicted.

        Every client, round, epoch and step has changes of its own, which depend on the run's seed alone: not on how
        clients are trained, nor on whether the run was resumed. Phases of a method that share their batches share
        the changes.

        Args:
            augment: names of :data:`plures.augment.AUGMENTATIONS` with options, joined by ``+``; an augmentation; your
                own function ``(key, inputs (n, *features), targets) -> (inputs, targets)``
                (:class:`plures.augment.Key`); a list of them; or ``None`` for no augmentation. Of several inputs, give
                augmentations by the name of the input, ``{"picture": "crop(4)+flip"}``; without a name, an augmentation
                changes the only input that it can change, and a function gets all of them as ``Inputs``.

        Examples:
            >>> import plures
            >>> plures.load("heart").augmented("noise(0.1)").augment.parts
            (Noise(std=0.1),)
        """
        found = None if augment is None else augment_of(augment)
        if found is not None and isinstance(self.inputs, Inputs):
            found = Augment(tuple(within(self.inputs.parts, self.task.target, part) for part in found.parts))
        return replace(self, augment=found)

    def classified(self, task: Task) -> Federation:
        """The same examples with the classes of another task, if they include all of this one's; otherwise unchanged.

        Args:
            task: for example that of a trained run, some of whose classes do not occur here.
        """
        if not self.task.classes or not set(self.task.classes) < set(task.classes):
            return self
        place = torch.tensor([task.classes.index(name) for name in self.task.classes], device=self.targets.device)
        return replace(self, task=task, targets=place[self.targets])

    def donate(self, share: float = 0.1, seed: int = 0) -> Federation:
        """The same federation with a random share of every client's training rows made public.

        What a client donates depends only on ``seed``, its name and its rows; it keeps at least one row. Hold out
        unseen clients first, or their rows are among the public ones.

        Args:
            share: of each client's training rows, in (0, 1), rounded.
            seed: of the draw.
        """
        self.one_input("donate")
        if not 0 < share < 1:
            raise PluresError(f"share={share}: the share of training rows to donate must lie between 0 and 1")
        kept, given = [], [self.public]
        for client, rows in zip(self.clients, self.splits["train"], strict=True):
            order = torch.from_numpy(generator(seed, "donate", client).permutation(len(rows))).to(rows.device)
            count = min(round(share * len(rows)), len(rows) - 1)
            given.append(rows[order[:count].sort().values])
            kept.append(rows[order[count:].sort().values])
        public = torch.cat(given)
        if not len(public):
            raise PluresError(f"share={share}: no client has enough training rows to give one; take a larger share")
        return replace(self, splits={**self.splits, "train": Split.of(kept)}, public=public)

    def describe(self) -> Description:
        """Clients, sizes, label skew and missing values; ``print`` it."""
        return describe(self)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Federation:
        """The same federation with its tensors on a device, floating-point data in ``dtype`` if given.

        Offsets of splits and the scaling stay on the CPU, like everything with one entry per client or column.

        Raises:
            PluresError: if there is no such device.
        """
        device = find(device)

        def move(values: Tensor) -> Tensor:
            return values.to(device, dtype if values.is_floating_point() else None)

        return replace(
            self,
            inputs=move(self.inputs) if isinstance(self.inputs, Tensor) else self.inputs.map(move),
            targets=move(self.targets),
            weights=None if self.weights is None else move(self.weights),
            splits={name: Split(s.rows.to(device), s.offsets) for name, s in self.splits.items()},
            public=self.public.to(device),
        )


def given_by_name(raw: Any, inputs: Tensor | Inputs) -> bool:
    """Whether several inputs are given by their names, not as a table whose columns they are made from."""
    return isinstance(inputs, Inputs) and isinstance(raw, Mapping) and {*raw} == {*inputs.parts}


def position(client: str | int, clients: Sequence[str], where: str = "") -> int:
    """Position of a client among others by its name.

    Args:
        client: a name, or a number that is one.
        clients: all names.
        where: where to find them, for the message.
    """
    name = name_of(client)
    try:
        return clients.places[name] if isinstance(clients, Names) else clients.index(name)
    except (KeyError, ValueError):
        raise PluresError(f"no client {name!r}{where}; {suggestion(name, clients, 'clients are')}") from None
