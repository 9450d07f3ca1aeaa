"""Part 3, schedule: which leaves are trained, in which order, for how long; and values assigned without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any

from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.federation import SplitName
from plures.method.layout import LayoutKey
from plures.method.optimizer import OPTIMIZERS, Optimizer
from plures.method.state import Batch, State
from plures.models import Leaves
from plures.signature import checked, shown

Objective = Callable[[State, State, Any], Tensor]
"""``(x, received, batch) -> scalar`` for one client; ``batch`` is a tuple when the phase asks for several.

Means over examples are taken by :meth:`Batch.mean <plures.method.Batch.mean>`."""

Before = Callable[[State, State, Any], Mapping[str, Leaves]]
"""Values computed just before each gradient and constant in it: ``{slot: leaves}``, read as ``x.slot``."""

Steps = int | Callable[[float], int]
"""A number of steps, or a function of a uniform number in [0, 1) drawn in each round, the same for all clients."""


@checked
@dataclass(frozen=True)
class Phase:
    """Gradient steps on some leaves.

    Attributes:
        train: slot names or selectors of the trained leaves; ``()`` for a phase that only computes what it ``keeps``.
            Buffers among them follow the forward passes.
        objective: what is minimised; by default the task loss of the ``train`` slot.
        before: values computed, without gradient, before each step.
        keeps: slots that ``before`` computes and that stay in the client's state.
        epochs: passes over the client's training data; default: the run's.
        steps: number of steps instead of epochs (possibly drawn at random); default: the run's.
        lr: learning rate; default: the run's. The run's learning-rate schedule scales both in rounds of training, but
            not in the work before predicting or in visits of newcomers.
        optimizer: local optimizer; default: the run's.
        batches: batches drawn for each step.
        random: whether the objective draws random numbers (:meth:`~plures.method.state.Batch.uniform`).
        stream: name of the sequence of batches. Phases with the same name see the same batches in a round, so a
            slot's trajectory does not depend on which other slots a method trains.
    """

    train: LayoutKey | tuple[LayoutKey, ...] = "model"
    objective: Objective | None = None
    before: Before | None = None
    keeps: tuple[str, ...] = ()
    epochs: float | None = None
    steps: Steps | None = None
    lr: float | None = None
    optimizer: Annotated[Optimizer | None, OPTIMIZERS] = None
    batches: int = 1
    random: bool = False
    stream: str = ""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise PluresError("a phase takes epochs or steps, not both")
        if self.epochs is not None and not 0 <= self.epochs < inf:
            raise PluresError(f"phase epochs={self.epochs}: give a finite number, 0 or more")
        if isinstance(self.steps, int) and self.steps < 0:
            raise PluresError(f"phase steps={self.steps}: give 0 or more")
        if self.lr is not None and self.lr < 0:
            raise PluresError(f"phase learning rate {self.lr}: it must not be negative")

    @property
    def targets(self) -> tuple[LayoutKey, ...]:
        return self.train if isinstance(self.train, tuple) else (self.train,)

    @property
    def slot(self) -> str:
        """The slot whose task loss is the default objective."""
        first = self.targets[0] if self.targets else "model"
        return first if isinstance(first, str) else first.slot

    def minimised(self, x: State, received: State, batch: Any) -> Tensor:
        """The objective's value for one client."""
        if self.objective is not None:
            return scalar(self.objective(x, received, batch), self.objective)
        own: Batch = batch[0] if isinstance(batch, tuple) else batch
        if not self.targets:
            return own.problem.network.zero(own.targets.device)
        return own.loss(getattr(x, self.slot))


def scalar(value: Any, objective: Objective) -> Tensor:
    """The value of an objective, refused unless it is one number."""
    if isinstance(value, Tensor) and value.dim() == 0:
        return value
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
    raise PluresError(
        f"objective {named(objective)} returns {found}; return one number, a tensor without dimensions: "
        "batch.mean(values) of one value for each example"
    )


def named(function: Callable[..., Any]) -> str:
    """Name of a user's function in a message."""
    return repr(getattr(function, "__name__", type(function).__name__))


@brief
@dataclass(frozen=True, eq=False)
class Visit:
    """What an assignment may know about the visit.

    Attributes:
        steps: steps of the preceding phase, a scalar.
        lr: learning rate of that phase, or the run's before the first phase, a scalar.
        reach: how many times that phase's gradients count in its change, in steps of length ``lr``
            (:func:`~plures.method.optimizer.reach`), a scalar: ``steps`` without momentum. Only where
            :attr:`Assign.linear` is given; otherwise NaN.
        round: number of the round, from 0, a scalar.
        measured: mean over the client's data of what the assignment measures.
        examples: the client's examples in every split that the assignment reads, each as one batch.
        key: int64 scalar that determines random numbers (:func:`plures.models.layers.uniform`).
    """

    steps: Tensor
    lr: Tensor
    reach: Tensor
    round: Tensor
    measured: Any
    examples: Mapping[str, Batch]
    key: Tensor


@checked
@dataclass(frozen=True)
class Assign:
    """New values for some slots, computed without gradient steps.

    Attributes:
        writes: the slots it changes.
        update: ``(x, received, visit) -> {slot: leaves}``.
        measure: ``(x, received, batch) -> leaves`` whose mean over all examples of the client becomes
            ``visit.measured``; evaluated in evaluation mode (no dropout, running statistics fixed).
        split: the examples that are measured.
        reads: splits whose examples the update gets whole, for statistics that are not means (a threshold, a density).
        through: ``(x, received, batch) -> (batch, ...)``: all that the update needs of their inputs, such as a model's
            outputs. It is computed for some examples at a time and takes the place of the inputs, which then need not
            fit into memory together.
        blind: the update needs no inputs, but targets and weights alone: none is read, and a tensor without numbers
            ``(examples, 0)`` takes their place.
        linear: for an update that treats the change of the preceding phase as a mean of gradients: the error message
            if the optimizer is not SGD, since other optimizers' steps are not sums of gradients.
    """

    writes: tuple[str, ...]
    update: Callable[[State, State, Visit], Mapping[str, Leaves]]
    measure: Callable[[State, State, Batch], Leaves] | None = None
    split: SplitName = "train"
    reads: tuple[SplitName, ...] = ()
    through: Callable[[State, State, Batch], Tensor] | None = None
    blind: bool = False
    linear: str = ""

    def __post_init__(self) -> None:
        if self.blind and self.through is not None:
            raise PluresError("an assignment that is blind reads no inputs; leave out what it would read them through")


Schedule = tuple[Phase | Assign, ...]
