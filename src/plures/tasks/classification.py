"""Classification: exactly one of several named classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plures.cells import alike, listed, number
from plures.errors import PluresError, PluresWarning, closest
from plures.metrics import CLASSIFICATION, SEVERAL_CLASSES, TWO_CLASSES, Catalogue, Metric
from plures.names import in_order
from plures.tasks.losses import Weights, bounded, settle
from plures.tasks.reading import refuse
from plures.tasks.shift import shifted_softmax
from plures.tasks.task import Array, Loss, Task, Where


@dataclass(frozen=True)
class Classification(Task):
    """One of several classes; the loss is the cross-entropy.

    Attributes:
        classes: class names in order; if not given, the values that occur in the data, in their order.
        class_weights: how much examples of each class count in training, in the order of the classes or by name
            (classes that are not named have weight 1). The loss of an example is multiplied by the weight of its class.
            The mean over a batch divides by the number of examples, not by the sum of their weights, so that all
            methods minimise the same function whatever their batches are.
        focal: exponent ``g`` of the focal loss (Lin et al. 2017), the cross-entropy times ``(1 - p)^g``, where ``p`` is
            the probability of the true class; 0 is the plain cross-entropy, 2 is usual.
        smoothing: label smoothing (Szegedy et al. 2016): this share of a label is spread over all classes alike.
        loss: a loss of your own instead of the cross-entropy, ``(outputs, targets) -> (batch,)``.

    Examples:
        >>> task = Classification(("healthy", "ill"), class_weights={"ill": 3})
        >>> outputs, targets = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> [round(float(x), 3) for x in task.losses(outputs, targets)]
        [0.693, 2.079]
    """

    kind: ClassVar[str] = "classification"
    called: ClassVar[str] = "classes"
    decision: ClassVar[str] = "class"
    number: ClassVar[torch.dtype] = torch.int64
    probable: ClassVar[bool] = True
    measures: ClassVar[tuple[Metric, ...]] = CLASSIFICATION
    by_data: ClassVar[tuple[str, ...]] = ("classes",)

    classes: tuple[str, ...] = ()
    class_weights: Weights = None
    loss: Loss | None = None
    focal: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, focal=100.0, smoothing=1.0)
        settle(self, "classes", "class", "class_weights")

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def target(self) -> tuple[int, ...]:
        return ()

    @property
    def further(self) -> Catalogue:
        return TWO_CLASSES if len(self.classes) == 2 else SEVERAL_CLASSES

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        if values.ndim != 1:
            raise PluresError(
                f"class labels must be one per row, got shape {values.shape}; for any number of labels at once, 0 or 1 "
                'each, give task="multilabel", for several numbers task="regression"'
            )
        if values.dtype.kind == "f":
            refuse(torch.from_numpy(values != np.floor(values)), "a label that is not a whole number", where)
            values = values.astype(np.int64)
        if self.classes:
            return self, _coded(values, self.classes, where)
        names, codes = _occurring(values)
        return replace(self, classes=names), codes

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        outside = (targets < 0) | (targets >= len(self.classes))
        return outside, f"a label outside 0..{len(self.classes) - 1}; correct the labels or the list of classes"

    def expected(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = (self.loss or self.cross_entropy)(outputs, targets)
        return each if self.class_weights is None else each * outputs.new_tensor(self.class_weights)[targets]

    def cross_entropy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every example before classes are weighed."""
        plain = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)
        if not self.focal:
            return plain
        return focused(plain, outputs.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1), self.focal)

    def mean_loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        own = self._written_for("mean_loss", "losses", "terms", "cross_entropy")
        plain = own and self.loss is None and self.class_weights is None and not (self.focal or self.smoothing)
        if plain and weight is None:
            return F.cross_entropy(outputs, targets)
        return super().mean_loss(outputs, targets, weight)

    def constant(self, targets: Tensor, weight: Tensor) -> Tensor:
        """Logarithms of the classes' shares ``(n_c + 1) / (n + classes)``, none of which is 0.

        With weights of classes, another loss or a smoothed one, the outputs of the least loss.
        """
        own = self._written_for("constant", "losses", "terms", "cross_entropy")
        if not own or self.loss is not None or self.class_weights is not None or self.focal or self.smoothing:
            return super().constant(targets, weight)
        counts = weight.to(torch.float64) @ self.certain(targets).to(torch.float64)
        return ((counts + 1) / (counts.sum() + self.outputs)).log()

    def shifted(self, outputs: Tensor, targets: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        own = self._written_for("shifted", "losses", "terms", "mean_loss", "cross_entropy")
        if not own or self.loss is not None or self.focal or self.smoothing:
            return super().shifted(outputs, targets, weight)
        counted = weight if self.class_weights is None else weight * outputs.new_tensor(self.class_weights)[targets]
        return shifted_softmax(outputs, targets, counted / weight.sum())

    @property
    def curved(self) -> bool:
        return super().curved and not (self.focal or self.smoothing)

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_c w_c p_c (d log p_c)^2``: an example of weight ``w`` counts as ``w`` examples."""
        logs = F.log_softmax(outputs, -1)
        chances = logs.exp()
        return logs, chances if self.class_weights is None else chances * outputs.new_tensor(self.class_weights)

    def scores(self, expected: Tensor) -> Tensor:
        return expected.clamp(min=torch.finfo(expected.dtype).tiny).log()

    def certain(self, targets: Tensor) -> Tensor:
        found = targets.unsqueeze(-1) == torch.arange(len(self.classes), device=targets.device)
        return found.to(torch.get_default_dtype())

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The mixture of probabilities, in logarithms, which tiny probabilities survive."""
        if not self._written_for("mix", "expected"):
            return super().mix(outputs, weights)
        logs = torch.stack([F.log_softmax(one, -1) for one in outputs], -1)
        return torch.logsumexp(logs + weights.log(), -1)

    def counts_of(self, targets: Tensor, owners: Tensor, clients: int) -> Tensor:
        many = len(self.classes)
        return torch.bincount(owners * many + targets, minlength=clients * many).view(clients, many)

    def miscounted(self, counts: Sequence[int], examples: int) -> str | None:
        wrong = super().miscounted(counts, examples)
        if wrong is None and sum(counts) != examples:
            return f"{examples} examples and {sum(counts)} labels"
        return wrong

    def strata(self, targets: Tensor) -> Array:
        return targets.numpy()

    def says(self, value: Tensor) -> str:
        return self.classes[int(value)]


def mixed_odds(odds: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Log odds ``(batch, outputs)`` of a mixture of probabilities, in logarithms, which tiny probabilities survive.

    Args:
        odds: log odds ``(batch, outputs)`` of each part.
        weights: ``(parts,)`` summing to 1.
    """
    every, logs = torch.stack(list(odds), -1), weights.log()
    there, absent = (torch.logsumexp(F.logsigmoid(one) + logs, -1) for one in (every, -every))
    return there - absent


def focused(losses: Tensor, chances: Tensor, focal: float) -> Tensor:
    """Focal losses, given the probability of what is true."""
    return losses * (1 - chances).pow(focal) if focal else losses


def _occurring(values: Array) -> tuple[tuple[str, ...], Tensor]:
    """The distinct values in order, as names, and the position of each row's value among them."""
    different, codes = np.unique(values, return_inverse=True)
    found = [str(value) for value in different.tolist()]
    names = tuple(found)
    if values.dtype.kind == "U":
        numeric = {name: number(name) for name in found}
        known = {name: value for name, value in numeric.items() if value is not None}
        names = (
            tuple(sorted(found, key=lambda name: (known[name], name))) if len(known) == len(found) else in_order(found)
        )
        pairs = alike(names)
        if pairs:
            warnings.warn(
                f"classes {pairs[0][0]!r} and {pairs[0][1]!r} differ only by case, blanks or notation: are they one?",
                PluresWarning,
                stacklevel=6,
            )
    place = np.array([names.index(name) for name in found], dtype=np.int64)
    return names, torch.from_numpy(place[codes.reshape(-1)])


def _coded(values: Array, names: tuple[str, ...], where: Where) -> Tensor:
    """Position of each label among the given classes."""
    by_number = all(name.removeprefix("-").isdecimal() for name in names)
    as_text = values.dtype.kind == "U" or (values.dtype.kind == "b" and {"False", "True"} >= set(names))
    if not as_text and not by_number:
        labels = values.astype(np.int64)
        outside = (labels < 0) | (labels >= len(names))
        if outside.any():
            at = int(outside.argmax())
            raise PluresError(
                f"{where(at)}: label {labels[at]} is outside 0..{len(names) - 1}; correct the labels or the list of "
                "classes"
            )
        return torch.from_numpy(labels)
    different, codes = np.unique(values if as_text else values.astype(np.int64), return_inverse=True)
    places = {name if as_text else str(int(name)): place for place, name in enumerate(names)}
    found = [places.get(str(value), -1) for value in different.tolist()]
    labels = np.array(found, dtype=np.int64)[codes.reshape(-1)]
    if (labels < 0).any():
        at = int((labels < 0).argmax())
        near = closest(values[at], names)
        hint = f"; did you mean {near!r}?" if near and as_text else ""
        shown = repr(str(values[at])) if as_text else values[at]
        raise PluresError(f"{where(at)}: label {shown} is not one of the classes {listed(names, 10)}{hint}")
    return torch.from_numpy(labels)
