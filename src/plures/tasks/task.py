"""What a task is: what targets look like, what a network's outputs mean, and which loss is minimised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import Catalogue, Metric, mean_loss
from plures.tasks.shift import LEAST, best_shift

Array = NDArray[Any]
Where = Callable[[int], str]
"""Describes the place of a row, for messages."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets) -> (batch,)``: a loss of your own for every example."""


REQUIRED = ("kind", "outputs", "read", "losses")
"""What a task of your own must define."""


@dataclass(frozen=True)
class Task:
    """What a client predicts. Everything that depends on the kind of targets is in this one object.

    A task of your own is a frozen dataclass that derives from this class. It has a ``kind`` and ``outputs``, reads
    targets, and has a loss. With ``expected``, ``scores`` and ``certain`` as well, methods that average predictions
    (FedEM, MAPPER, kNN-Per, WiSE-FT) work with it. Its fields are its options: plain values, so that run folders and
    published models can store them.

    Attributes:
        kind: what the task is called in results and messages.
        called: what its outputs are called in them.
        decision: what a decision is called in files and tables.
        number: type of the targets.
        probable: whether :meth:`expected` gives probabilities, so that a decision differs from an output.
        scalable: whether targets may be standardised, if they are numbers.
        joint: whether an example's loss depends on the other examples of its batch (:meth:`terms`).
        measures: metrics of all tasks of this kind; default: the mean loss.
        by_data: options that are taken from the data if they are not given, such as the names of classes.
        metrics: metrics of predictions, by default ``measures``; rounds and settings are chosen by the first.

    Examples:
        Counts of events, whose logarithm a network predicts:

        >>> from dataclasses import dataclass
        >>> from plures.metrics import Metric
        >>> def miss(predictions):
        ...     return (predictions.outputs.exp() - predictions.targets).abs().squeeze(-1)
        >>> @dataclass(frozen=True)
        ... class Counts(plures.Task):
        ...     kind = "counts"
        ...     outputs = 1
        ...     measures = (Metric("miss", "mean absolute error", miss),)
        ...
        ...     def read(self, values, where):
        ...         return self, torch.from_numpy(values.astype(np.float32)).view(-1, 1)
        ...
        ...     def losses(self, outputs, targets):
        ...         return (outputs.exp() - targets * outputs).squeeze(-1)
        >>> rows, falls = np.arange(40.0)[:, None] / 40, np.arange(40) // 10
        >>> data = plures.from_arrays(rows, falls, ["east"] * 20 + ["west"] * 20, task=Counts())
        >>> run = plures.Run(data, lambda: torch.nn.Linear(1, 1), plures.methods.fedavg(), plures.Training(rounds=1))
        >>> record = run.step()
        >>> list(plures.score(run, "test").values)
        ['miss']
    """

    kind: ClassVar[str]
    called: ClassVar[str] = "outputs"
    decision: ClassVar[str] = "decision"
    number: ClassVar[torch.dtype] = torch.float32
    probable: ClassVar[bool] = False
    scalable: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    measures: ClassVar[tuple[Metric, ...]] = (mean_loss,)
    by_data: ClassVar[tuple[str, ...]] = ()

    metrics: tuple[Metric, ...] = field(default=(), kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        kind, name = type(self), type(self).__name__
        lacking = [what for what in REQUIRED if getattr(kind, what, None) is getattr(Task, what, None)]
        if lacking:
            raise PluresError(f"the task {name} has no {lacking[0]}: a task of your own needs {', '.join(REQUIRED)}")
        if (loss := getattr(self, "loss", None)) is not None and not callable(loss):
            raise PluresError(f"loss={loss!r}: give a function (outputs, targets) -> (batch,)")
        if not self.metrics:
            object.__setattr__(self, "metrics", self.measures)

    @property
    def further(self) -> Catalogue:
        """Metrics that are measured when they are asked for by name."""
        return Catalogue()

    # --- what targets look like ---------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Outputs that a network needs for one example: classes, labels, or target numbers."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, of which every example has exactly one; empty for other tasks."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each expected value: for each class, label or number."""
        return tuple(f"y{number}" for number in range(self.outputs))

    @property
    def target(self) -> tuple[int, ...]:
        """Shape of the target of one example."""
        return (self.outputs,)

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        """The task with options taken from the data, such as the names of classes, and targets as a model learns them.

        Args:
            values: raw targets, one row each: boolean, integer, floating point or text.
            where: the place of a row, for messages.

        Returns:
            The task; targets ``(n, *target)`` of type :attr:`number`.

        Raises:
            PluresError: names the first row whose target cannot be read.
        """
        raise NotImplementedError

    def of_columns(self, columns: tuple[str, ...]) -> Self:
        """The task on targets that come from several named columns of a table, in this order."""
        return self

    def completed(self, found: Task) -> Self:
        """The task on data that were read for another task, with options taken from the data (:attr:`by_data`).

        Args:
            found: the task of the data.

        Raises:
            PluresError: if the data do not have the targets that it expects.
        """
        said = {name: getattr(found, name, getattr(self, name)) for name in self.by_data}
        for name, value in said.items():
            if (own := getattr(self, name)) and own != value:
                raise PluresError(f"{name}: the task says {own!r}, but the data have {value!r}: leave {name}= out")
        made = replace(self, **said)
        if (made.target, made.number) != (found.target, found.number):
            raise PluresError(
                f"a {self.kind} cannot be learned from data that were read for a {found.kind}: their targets have "
                "another shape or type; build them with task="
            )
        return made

    def blank(self, *shape: int) -> Tensor:
        """Placeholder targets, ``(*shape, *target)``; without a shape, ``(0, *target)``."""
        return torch.zeros(*(shape or (0,)), *self.target, dtype=self.number)

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        """Rows with an impossible target, ``(n,)``, and what is wrong with them.

        Args:
            targets: ``(n, *target)``.
        """
        return ~targets.isfinite().flatten(1).all(1), "a NaN or an infinite target; correct it or leave the row out"

    # --- what a network gives -----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a network's outputs for one example."""
        return (self.outputs,)

    @property
    def shift(self) -> tuple[int, ...]:
        """Shape of one number for each of :attr:`outputs` that can be added to a network's outputs."""
        return (self.outputs,)

    def expected(self, outputs: Tensor) -> Tensor:
        """What outputs mean: the probability of each class or label, or the predicted numbers, ``(..., names)``.

        Args:
            outputs: ``(..., outputs)``.
        """
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Probabilities ``(..., names)``; ``None`` where numbers are predicted."""
        return self.expected(outputs) if self.probable else None

    def decide(self, outputs: Tensor) -> Tensor:
        """The client's decision, ``(..., *target)``; the outputs themselves where numbers are predicted."""
        return outputs

    # --- what is minimised --------------------------------------------------------------------------------------

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every example, ``(batch,)``, which every method minimises.

        Args:
            outputs: ``(batch, *shape)``.
            targets: ``(batch, *target)``.
        """
        raise NotImplementedError

    def terms(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """What every example adds to the loss of its batch, ``(batch,)``: its loss, unless the task is :attr:`joint`.

        A joint task overrides this method, and its terms must not depend on examples of weight 0, which are padding.

        Args:
            outputs: ``(batch, *shape)``.
            targets: ``(batch, *target)``.
            weight: ``(batch,)`` how much each example counts, 0 for padding; ``None`` when all count alike.
        """
        return self.losses(outputs, targets)

    def mean_loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean loss over a batch, ``sum_i w_i l_i / sum_i w_i``, of the :meth:`terms` of its examples.

        Args:
            outputs: ``(batch, *shape)``.
            targets: ``(batch, *target)``.
            weight: ``(batch,)`` how much each example counts, 0 for padding; ``None`` when all count alike.
        """
        each = self.terms(outputs, targets, weight)
        return each.mean() if weight is None else (each * weight).sum() / weight.sum()

    def constant(self, targets: Tensor, weight: Tensor) -> Tensor:
        """The outputs ``shape`` of the best predictor that knows no input: those of the least mean loss.

        Args:
            targets: ``(n, *target)`` of one client.
            weight: ``(n,)`` how much each example counts, 0 for padding.
        """

        def cost(outputs: Tensor) -> Tensor:
            every = outputs.expand(len(targets), self.outputs)
            return self.mean_loss(every, exact, weight.to(every)) + LEAST * outputs.square().sum()

        exact = targets.to(torch.float64) if targets.is_floating_point() else targets
        return best_shift(cost, torch.zeros(self.outputs, dtype=torch.float64, device=targets.device), self.curved)

    def shifted(self, outputs: Tensor, targets: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """The mean loss as a function ``(outputs,) -> ()`` of what is added to the outputs; a constant may be left out.

        Args:
            outputs: ``(n, *shape)``.
            targets: ``(n, *target)``.
            weight: ``(n,)`` how much each example counts, 0 for padding.
        """
        return lambda shift: self.mean_loss(outputs + shift.view(self.shift), targets, weight)

    @property
    def smooth(self) -> bool:
        """Whether :meth:`shifted` is convex and twice differentiable everywhere, so that Newton's method suffices."""
        return self.curved

    @property
    def squared(self) -> bool:
        """Whether the loss is the plain squared error, so that some methods have closed forms."""
        return False

    @property
    def curved(self) -> bool:
        """Whether :meth:`curvature` is known; it is not if a loss of your own replaces the task's."""
        return getattr(self, "loss", None) is None and self._written_for("curvature", "losses", "terms")

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``u`` and weights ``w`` such that an example's expected curvature is ``sum_k w_k (d u_k)^2``.

        Expected over the targets that the outputs predict: the Fisher information, where the loss is a negative
        log-likelihood. It is that of the task's own loss; ask :attr:`curved` first whether that is the one minimised.

        Args:
            outputs: ``(..., outputs)``.
        """
        raise PluresError(f"{self.kind}: this loss does not define its curvature (Task.curvature), needed here")

    def curve_errors(self, train: tuple[Tensor, Tensor, Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        """Integrated squared errors of the survival curves of one client's examples, ``(n,)``.

        Args:
            train: outputs, targets and weights of the client's train rows.
            outputs: ``(n, *shape)``.
            targets: ``(n, *target)``.
        """
        raise PluresError(f"a {self.kind} predicts no survival curve: choose another metric")

    # --- how predictions mix ------------------------------------------------------------------------------------

    def scores(self, expected: Tensor) -> Tensor:
        """Outputs that correspond to expected values: the inverse of :meth:`expected`."""
        raise PluresError(f"{self.kind}: predictions cannot be mixed, because the task has no Task.scores")

    def certain(self, targets: Tensor) -> Tensor:
        """Expected values of a predictor that knows the targets, ``(..., names)``, to be averaged over examples."""
        raise PluresError(f"{self.kind}: targets cannot be averaged, because the task has no Task.certain")

    @property
    def mixes(self) -> bool:
        """Whether the predictions of several predictors can be mixed."""
        return self._written_for("scores", "expected")

    @property
    def averages(self) -> bool:
        """Whether targets can be averaged over examples."""
        return self._written_for("certain")

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Outputs of a mixture of predictors: the weighted mean of their expected values.

        Args:
            outputs: of each predictor, ``(batch, outputs)``.
            weights: ``(predictors,)``, of sum 1.
        """
        return self.scores((torch.stack([self.expected(one) for one in outputs], -1) * weights).sum(-1))

    def _written_for(self, method: str, *others: str) -> bool:
        """Whether a method fits others that it depends on, which no subclass of its own class overrides."""
        for kind in type(self).__mro__:
            if method in vars(kind):
                return kind is not Task
            if any(other in vars(kind) for other in others):
                return False
        return False

    # --- what is reported about targets -------------------------------------------------------------------------

    def counts(self, targets: Tensor) -> Tensor | None:
        """How often each class or label occurs, ``(names,)`` int64: what a client may report; ``None`` for numbers.

        Args:
            targets: ``(n, *target)``.
        """
        counts = self.counts_of(targets, torch.zeros(len(targets), dtype=torch.int64, device=targets.device), 1)
        return None if counts is None else counts[0]

    def counts_of(self, targets: Tensor, owners: Tensor, clients: int) -> Tensor | None:
        """`counts` of every client, ``(clients, names)`` int64; ``None`` for numbers.

        Args:
            targets: ``(n, *target)`` of all clients.
            owners: ``(n,)`` int64 client of each target.
            clients: number of clients.
        """
        return None

    def miscounted(self, counts: Sequence[int], examples: int) -> str | None:
        """What is wrong with label counts that a client reports; ``None`` if nothing is."""
        if len(counts) != len(self.names):
            return f"{len(counts)} label counts for {len(self.names)} {self.called}"
        return None

    def strata(self, targets: Tensor) -> Array | None:
        """Groups ``(n,)`` by which a client's splits are stratified; ``None`` for none."""
        return None

    def says(self, value: Tensor) -> str:
        """One target or decision as text."""
        return ", ".join(f"{number:.4g}" for number in value.reshape(-1).tolist())

    def answer(self, decision: Tensor) -> Any:
        """One decision as JSON: text, or nested lists of texts where there is one at every position."""
        return self.says(decision)
