"""A label at every position of an example: pixels of a picture, tokens of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import SEGMENTATION, TOKENS, Metric
from plures.tasks.losses import Weights, replaced, settle
from plures.tasks.reading import distinct, refuse
from plures.tasks.shift import shifted_softmax
from plures.tasks.task import Array, Loss, Task, Where


@dataclass(frozen=True)
class Positions(Task):
    """One of several labels at each position; negative targets are positions that do not count.

    The loss of an example is the mean cross-entropy over its positions that count, so that examples count alike,
    whatever their length; 0 if none counts.

    Attributes:
        size: shape of the target of one example; default: as in the data.
        ignored: a label in the data that does not count, such as 255 or the number of the padding token; negative
            labels never count.
        loss: a loss of your own instead, ``(outputs, targets) -> (batch,)``.
    """

    called: ClassVar[str] = "labels"
    decision: ClassVar[str] = "label"
    number: ClassVar[torch.dtype] = torch.int64
    probable: ClassVar[bool] = True

    size: tuple[int, ...] = ()
    ignored: int | None = None
    loss: Loss | None = None

    @property
    def target(self) -> tuple[int, ...]:
        return self.size

    def of_count(self, count: int) -> Self:
        """The task with as many labels as occur, unless it says how many there are."""
        raise NotImplementedError

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        if values.ndim < 2 or values.dtype.kind not in "iub":
            raise PluresError(
                f"{self.kind} needs whole numbers, a label at every position, but targets are {values.dtype} of shape "
                f"{values.shape}"
            )
        if self.size and self.size != values.shape[1:]:
            raise PluresError(f"targets have shape {values.shape[1:]}, but the {self.kind} has size {self.size}")
        targets = torch.from_numpy(values.astype("int64"))
        if self.ignored is not None:
            targets = torch.where(targets == self.ignored, -1, targets)
        if not bool((targets >= 0).any()):
            raise PluresError(f"{self.kind}: no position has a label that counts")
        made = replace(self, size=tuple(values.shape[1:])).of_count(1 + int(targets.max()))
        refuse(*made.faults(targets), where)
        return made, targets

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        outside = (targets >= self.outputs).flatten(1).any(1)
        return outside, f"a label outside 0..{self.outputs - 1}; negative ones do not count, as does ignored="

    def arranged(self, outputs: Tensor) -> Tensor:
        """Outputs with the labels as the last dimension, ``(..., *size, labels)``."""
        return outputs

    def returned(self, outputs: Tensor) -> Tensor:
        """The inverse of :meth:`arranged`."""
        return outputs

    def expected(self, outputs: Tensor) -> Tensor:
        """Probabilities ``(..., *size, labels)``."""
        return self.arranged(outputs).softmax(-1)

    def decide(self, outputs: Tensor) -> Tensor:
        return self.arranged(outputs).argmax(-1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        logs, counts = self.arranged(outputs).log_softmax(-1), targets >= 0
        each = -logs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        summed = (torch.where(counts, each, 0.0) * self.weight_of(targets, outputs)).flatten(1).sum(1)
        return summed / counts.flatten(1).sum(1).clamp(min=1)

    def constant(self, targets: Tensor, weight: Tensor) -> Tensor:
        """Logarithms of the labels' shares ``(n_l + 1) / (n + labels)`` of all positions, at every position."""
        given = weight.to(torch.float64).view(-1, *(1,) * len(self.size)) * (targets >= 0)
        counts = given.new_zeros(self.outputs).index_add_(0, targets.clamp(min=0).flatten(), given.flatten())
        logs = ((counts + 1) / (counts.sum() + self.outputs)).log()
        return self.returned(logs.expand(*self.size, self.outputs))

    @property
    def smooth(self) -> bool:
        return self.loss is None and self._written_for("smooth", "losses", "terms", "mean_loss")

    def shifted(self, outputs: Tensor, targets: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        if not self.smooth or not self._written_for("shifted", "losses", "terms", "mean_loss"):
            return super().shifted(outputs, targets, weight)
        counts = (targets >= 0).flatten(1)
        each = counts * self.weight_of(targets, outputs).expand(targets.shape).flatten(1)
        each = each * (weight / weight.sum() / counts.sum(1).clamp(min=1)).unsqueeze(-1)
        return shifted_softmax(
            self.arranged(outputs).flatten(0, -2), targets.clamp(min=0).flatten(), each.to(outputs).flatten()
        )

    def weight_of(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """How much every position counts in the loss."""
        return outputs.new_ones(())

    def scores(self, expected: Tensor) -> Tensor:
        return self.returned(expected.clamp(min=torch.finfo(expected.dtype).tiny).log())

    def certain(self, targets: Tensor) -> Tensor:
        """Probability 1 for the label; alike for all labels where the position does not count."""
        found = targets.unsqueeze(-1) == torch.arange(self.outputs, device=targets.device)
        default = torch.get_default_dtype()
        return torch.where((targets < 0).unsqueeze(-1), 1 / self.outputs, found.to(default))

    def answer(self, decision: Tensor) -> Any:
        if decision.dim():
            return [self.answer(part) for part in decision]
        return self.names[int(decision)]

    def says(self, value: Tensor) -> str:
        """The most frequent labels."""
        labels, times = torch.unique(value[value >= 0], return_counts=True)
        most = times.argsort(descending=True, stable=True)[:3].tolist()
        return ", ".join(f"{self.names[int(labels[i])]} x {int(times[i])}" for i in most) or "nothing"


@dataclass(frozen=True)
class Segmentation(Positions):
    """A label for every pixel; a network gives ``(batch, labels, *size)``, as PyTorch's segmentation networks do.

    Attributes:
        labels: their names in order, the background first; default: the numbers that occur.
        label_weights: how much pixels of each label count in training, in the order of the labels or by name.

    Examples:
        >>> task = Segmentation(labels=("sky", "road"), size=(1, 2))
        >>> outputs, targets = torch.zeros(1, 2, 1, 2), torch.tensor([[[1, -1]]])
        >>> round(float(task.losses(outputs, targets)), 3)  # the second pixel does not count
        0.693
    """

    kind: ClassVar[str] = "segmentation"
    measures: ClassVar[tuple[Metric, ...]] = SEGMENTATION
    by_data: ClassVar[tuple[str, ...]] = ("labels", "size")

    labels: tuple[str, ...] = ()
    label_weights: Weights = None

    def __post_init__(self) -> None:
        super().__post_init__()
        replaced(self, "label_weights")
        settle(self, "labels", "label", "label_weights")

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def of_count(self, count: int) -> Self:
        return self if self.labels else replace(self, labels=tuple(map(str, range(count))))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs, *self.size)

    @property
    def shift(self) -> tuple[int, ...]:
        return (self.outputs, *(1,) * len(self.size))

    def arranged(self, outputs: Tensor) -> Tensor:
        return outputs.movedim(-1 - len(self.size), -1)

    def returned(self, outputs: Tensor) -> Tensor:
        return outputs.movedim(-1, -1 - len(self.size))

    def weight_of(self, targets: Tensor, outputs: Tensor) -> Tensor:
        if self.label_weights is None:
            return super().weight_of(targets, outputs)
        return outputs.new_tensor(self.label_weights)[targets.clamp(min=0)]


@dataclass(frozen=True)
class NextToken(Positions):
    """The token that follows at every position; a network gives ``(batch, length, vocabulary)``.

    Targets are the inputs, shifted by one; padding is negative, or the token that ``ignored`` names.

    Attributes:
        vocabulary: number of tokens; default: those that occur, or as many as have names.
        tokens: their names in order, for predictions; default: their numbers.

    Examples:
        >>> task = NextToken(vocabulary=4, size=(2,))
        >>> round(float(task.losses(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))), 3)
        1.386
    """

    kind: ClassVar[str] = "next_token"
    called: ClassVar[str] = "tokens"
    decision: ClassVar[str] = "token"
    measures: ClassVar[tuple[Metric, ...]] = TOKENS
    by_data: ClassVar[tuple[str, ...]] = ("vocabulary", "size")

    vocabulary: int = 0
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", distinct(self.tokens, "tokens", "token"))
        if self.tokens:
            object.__setattr__(self, "vocabulary", self.vocabulary or len(self.tokens))
            if self.vocabulary != len(self.tokens):
                raise PluresError(
                    f"next_token: {len(self.tokens)} names of tokens, but vocabulary={self.vocabulary}; name all or "
                    "none"
                )

    @property
    def outputs(self) -> int:
        return self.vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        return self.tokens or tuple(map(str, range(self.vocabulary)))

    def completed(self, found: Task) -> Self:
        made = super().completed(found)
        names = getattr(found, "tokens", ())
        return replace(made, tokens=names) if names and not made.tokens else made

    def of_count(self, count: int) -> Self:
        return self if self.vocabulary else replace(self, vocabulary=count)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.size, self.outputs)
