"""What a metric is: a number per client, computed from the predictions for the client's examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.signature import shown

FAR = 1e12
"""Bound of a range that has none of its own: what a site reports for a model that diverged."""


@brief
@by_content
@dataclass(frozen=True)
class Predictions:
    """Predictions and targets of one client, or of several clients, stacked.

    For one client there is no leading dimension. Stacked clients are padded to the same number of examples, with
    weight 0.

    Attributes:
        outputs: ``(clients, examples, ...)`` of the network, or of the method's combination of several.
        targets: ``(clients, examples)`` classes, or ``(clients, examples, outputs)`` numbers or labels that are 0 or 1.
        weight: ``(clients, examples)`` how much an example counts: its weight, else 1; 0 for padding.
        losses: ``(clients, examples)`` the task's loss.
        decisions: the client's decisions, shaped as ``targets``; for numbers, the predicted ones.
        probabilities: ``(clients, examples, classes)``, or of each label; ``None`` where numbers are predicted.
        curves: ``(clients, examples)`` integrated squared error of the predicted survival curve, whose baseline is
            that of the client's train rows; ``None`` unless a metric asks for it (:attr:`Metric.from_train`).

    Examples:
        >>> from plures.metrics import CLASSIFICATION
        >>> outputs, targets = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1])
        >>> ones, losses, chances = torch.ones(2), torch.zeros(2), outputs.softmax(1)
        >>> said = plures.Predictions(outputs, targets, ones, losses, chances.argmax(1), chances)
        >>> CLASSIFICATION[0].name, float(CLASSIFICATION[0].of(said))
        ('accuracy', 0.5)
    """

    outputs: Tensor
    targets: Tensor
    weight: Tensor
    losses: Tensor
    decisions: Tensor
    probabilities: Tensor | None = None
    curves: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Predictions:
        """The same with every tensor changed."""
        return Predictions(**{name: change(t) for name, t in _tensors(self).items()})

    def joined(self, *others: Predictions) -> Predictions:
        """These examples of one client and others of it, as one."""
        rest = [iter(_tensors(other).values()) for other in others]
        return self.map(lambda t: torch.cat([t, *map(next, rest)]))

    @cached_property
    def finite(self) -> Tensor:
        """``(clients, examples)`` whether all outputs are finite; those of a model that diverged are not."""
        return self.outputs.isfinite().flatten(self.weight.dim()).all(-1)

    @property
    def chances(self) -> Tensor:
        """The probabilities, for metrics that need them."""
        if self.probabilities is None:
            raise PluresError("this task has no probabilities for a metric to be computed from: choose another metric")
        return self.probabilities


def _tensors(predictions: Predictions) -> dict[str, Tensor]:
    given = {one.name: getattr(predictions, one.name) for one in fields(predictions)}
    return {name: t for name, t in given.items() if t is not None}


def _described(found: object) -> str:
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else shown(found)


PerExample = Tensor | tuple[Tensor, ...]
"""What a metric needs of each example, ``(clients, examples, ...)`` each."""


def columns(kept: PerExample) -> tuple[Tensor, ...]:
    """What a metric needs of each example, as several tensors."""
    return kept if isinstance(kept, tuple) else (kept,)


def mean(weight: Tensor, values: Tensor) -> Tensor:
    """Weighted mean over each client's examples, ``(clients, ...)``; NaN where nothing has weight.

    Args:
        weight: ``(clients, examples)``; what has weight 0 is left out, even if it is not finite.
        values: ``(clients, examples, ...)``.
    """
    counted = weight.double().view(*weight.shape, *(1,) * (values.dim() - weight.dim()))
    return torch.where(counted > 0, counted * values.double(), 0.0).sum(1) / counted.sum(1)


@dataclass(frozen=True)
class Metric:
    """A number per client that measures how well its predictor does on its examples.

    It is computed in two steps: ``each`` extracts from a batch what the metric needs of every example, and ``value``
    computes one number from all of a client's examples. For a mean over examples, ``each`` gives what is averaged and
    ``value`` is left out. Both get several clients at once; :func:`alone` makes a ``value`` from a function of a single
    client.

    Attributes:
        name: its name in results and on the command line.
        title: its name in tables.
        each: ``(predictions) -> kept``: of every example, a tensor ``(clients, examples, ...)`` or several.
        value: ``(weight, *kept) -> (clients,)``. NaN where the metric is undefined for a client: without examples, or
            for example where ranking needs two classes and it has one. Such clients are left out of means, and counted.
        higher: whether more is better.
        unit: what it is measured in. With ``"%"``, it is a share, and tables show it times 100.
        range: least and largest value. A site of a deployment clips a value to this range before it reports it.
        undefined: when a client with examples has no value, in words that follow "undefined".
        from_train: whether it also needs what the predictor says of the client's train rows.

    Examples:
        The share of examples whose class is among the two most probable:

        >>> import torch
        >>> def among_two(predictions):
        ...     two = predictions.chances.topk(2, dim=-1).indices
        ...     return (two == predictions.targets.unsqueeze(-1)).any(-1)
        >>> top2 = Metric("top2", "top-2 accuracy", among_two, higher=True, unit="%", range=(0, 1))
        >>> chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
        >>> targets = torch.tensor([1, 0])
        >>> top2.of(Predictions(chances.log(), targets, torch.ones(2), torch.zeros(2), chances.argmax(-1), chances))
        0.5
    """

    name: str
    title: str
    each: Callable[[Predictions], PerExample] = field(repr=False)
    value: Callable[..., Tensor] = field(default=mean, repr=False)
    higher: bool = False
    unit: str = ""
    range: tuple[float, float] = (0.0, FAR)
    undefined: str = ""
    from_train: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise PluresError(f"metric {self.name!r}: give it a name of letters, digits and underscores")
        if not self.range[0] < self.range[1]:
            raise PluresError(f"metric {self.name!r}: range {self.range} has no least value below its largest")

    @property
    def percent(self) -> bool:
        """Whether tables show it times 100."""
        return self.unit == "%"

    @property
    def sign(self) -> int:
        """1 if more is better, otherwise -1: the factor by which values are multiplied before they are compared."""
        return 1 if self.higher else -1

    def of(self, predictions: Predictions) -> float:
        """The metric of one client, whose predictions have no leading dimension; NaN where it is undefined."""
        return float(self.stacked(predictions.map(lambda t: t.unsqueeze(0)))[0])

    def stacked(self, predictions: Predictions) -> Tensor:
        """The metric of every client, ``(clients,)``."""
        return self.computed(predictions.weight, *self.needed(predictions))

    def needed(self, predictions: Predictions) -> tuple[Tensor, ...]:
        """What the metric needs of every example, ``(clients, examples, ...)`` each.

        Raises:
            PluresError: if ``each`` returns anything else.
        """
        shape, found = tuple(predictions.weight.shape), columns(self.each(predictions))
        for one in found:
            if not isinstance(one, Tensor) or tuple(one.shape[: len(shape)]) != shape:
                raise PluresError(
                    f"metric {self.name!r}: each(predictions) returned {_described(one)} for {shape[0]} clients with "
                    f"{shape[1]} examples; let it return a tensor of shape (clients, examples, ...), or a tuple of them"
                )
        return found

    def computed(self, weight: Tensor, *kept: Tensor) -> Tensor:
        """The metric of every client, ``(clients,)``, from what it needs of all their examples.

        Raises:
            PluresError: if ``value`` returns anything else.
        """
        found = self.value(weight, *kept)
        if not isinstance(found, Tensor) or tuple(found.shape) != (len(weight),):
            raise PluresError(
                f"metric {self.name!r}: value(weight, ...) returned {_described(found)} for {len(weight)} clients; let "
                "it return a tensor of shape (clients,), or make it with alone(function) from a function of one client"
            )
        return found.double()

    def within(self, value: float) -> float | None:
        """A value as it is reported: clipped to the metric's range, ``None`` where it is undefined."""
        least, most = self.range
        return None if math.isnan(value) else min(max(value, least), most)


@brief
@dataclass(frozen=True)
class Alone:
    """A metric's ``value`` from a function of one client; see :func:`alone`."""

    function: Callable[..., float]
    weighted: bool = False

    def __call__(self, weight: Tensor, *kept: Tensor) -> Tensor:
        if not self.weighted and not bool(((weight == 0) | (weight == 1)).all()):
            raise PluresError(
                "the examples have weights, which the function of this metric does not get: let it take sample_weight= "
                "and say alone(function, weighted=True)"
            )
        found = []
        for client, row in enumerate(weight):
            counted = row > 0
            given = {"sample_weight": row[counted]} if self.weighted else {}
            some = bool(counted.any())
            found.append(float(self.function(*(k[client][counted] for k in kept), **given)) if some else math.nan)
        return torch.tensor(found, dtype=torch.float64, device=weight.device)


def alone(function: Callable[..., float], *, weighted: bool = False) -> Callable[..., Tensor]:
    """A metric's ``value`` from a function of one client, such as those of scikit-learn.

    Such a metric has no confidence intervals inside clients, for which it would be computed hundreds of times for each.

    Args:
        function: ``(*kept) -> float``, of a client with at least one example; it gets no padding.
        weighted: whether the function gets the weights of the examples, too, as ``sample_weight=``.

    Raises:
        PluresError: the value, if examples have weights and the function gets none.

    Examples:
        >>> def of_half(predictions):
        ...     return predictions.losses
        >>> median = Metric("median_loss", "median loss", of_half, alone(lambda losses: losses.median()))
    """

    return Alone(function, weighted)
