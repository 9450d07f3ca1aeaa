"""Multi-label classification: any number of several named labels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import MULTILABEL, Metric
from plures.tasks.classification import focused, mixed_odds
from plures.tasks.losses import Weights, bounded, replaced, settle
from plures.tasks.reading import refuse
from plures.tasks.task import Array, Loss, Task, Where


@dataclass(frozen=True)
class MultiLabel(Task):
    """Each label is present or absent; the loss is the sigmoid cross-entropy, the mean over labels.

    Like PyTorch's ``BCEWithLogitsLoss``, it averages over labels. A client predicts a label if its probability is above
    0.5.

    Attributes:
        labels: their names in order; if not given, those of the target columns of a table, or ``label 0``,
            ``label 1``, ...
        positive_weights: how much an example that has a label counts in that label's loss, in the order of the labels
            or by name (labels that are not named have weight 1): above 1 for rare labels.
        focal: exponent of the focal loss (Lin et al. 2017), as in :class:`Classification`, of each label.
        loss: a loss of your own instead, ``(outputs, targets) -> (batch,)``.

    Examples:
        >>> task = MultiLabel(("cough", "fever"), positive_weights={"fever": 3})
        >>> outputs, targets = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
        >>> round(float(task.losses(outputs, targets)), 3)  # (log 2 + 3 log 2) / 2
        1.386
    """

    kind: ClassVar[str] = "multilabel"
    called: ClassVar[str] = "labels"
    decision: ClassVar[str] = "labels"
    probable: ClassVar[bool] = True
    measures: ClassVar[tuple[Metric, ...]] = MULTILABEL
    by_data: ClassVar[tuple[str, ...]] = ("labels",)

    labels: tuple[str, ...] = ()
    positive_weights: Weights = None
    loss: Loss | None = None
    focal: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, focal=100.0)
        replaced(self, "positive_weights")
        settle(self, "labels", "label", "positive_weights")

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def read(self, values: Array, where: Where) -> tuple[MultiLabel, Tensor]:
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise PluresError(f"labels must be numbers 0 or 1, (n, labels), got {values.dtype} of shape {values.shape}")
        names = self.labels or tuple(f"label {number}" for number in range(values.shape[1]))
        if len(names) != values.shape[1]:
            raise PluresError(f"targets have {values.shape[1]} labels, but the task names {len(names)}")
        made = replace(self, labels=names)
        targets = torch.from_numpy(values.astype(np.float32))
        refuse(*made.faults(targets), where)
        return made, targets

    def of_columns(self, columns: tuple[str, ...]) -> MultiLabel:
        if self.labels and self.labels != columns:
            raise PluresError(
                f"labels: the task names {', '.join(self.labels)}, but the target columns are {', '.join(columns)}: "
                "give the same names in the same order, or leave labels= out"
            )
        return replace(self, labels=columns)

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        return ~((targets == 0) | (targets == 1)).all(1), "a label that is neither 0 nor 1; correct it"

    def expected(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, targets)
        weights = None if self.positive_weights is None else outputs.new_tensor(self.positive_weights)
        each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none", pos_weight=weights)
        return focused(each, torch.where(targets > 0, outputs, -outputs).sigmoid(), self.focal).mean(-1)

    @property
    def curved(self) -> bool:
        return super().curved and not self.focal

    def constant(self, targets: Tensor, weight: Tensor) -> Tensor:
        """Log odds ``log (n_l + 1) / (n - n_l + 1)`` of each label."""
        plain = self.loss is None and self.positive_weights is None and not self.focal
        plain = plain and self._written_for("constant", "losses", "terms")
        if not plain:
            return super().constant(targets, weight)
        given = weight.to(torch.float64)
        there, absent = (given @ part.to(torch.float64) for part in (targets, 1 - targets))
        return ((there + 1) / (absent + 1)).log()

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_l (1 + (w_l - 1) p_l) p_l (1 - p_l) (d f_l)^2 / labels``: the loss, expected over predicted labels."""
        chances = outputs.sigmoid()
        counted = torch.ones_like(chances)
        if self.positive_weights is not None:
            counted = 1 + (outputs.new_tensor(self.positive_weights) - 1) * chances
        return outputs, counted * chances * (1 - chances) / self.outputs

    def scores(self, expected: Tensor) -> Tensor:
        return expected.logit(eps=torch.finfo(expected.dtype).eps)

    def certain(self, targets: Tensor) -> Tensor:
        return targets

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The mixture of each label's probabilities, not of their odds."""
        if not self._written_for("mix", "expected"):
            return super().mix(outputs, weights)
        return mixed_odds(outputs, weights)

    def counts_of(self, targets: Tensor, owners: Tensor, clients: int) -> Tensor:
        return targets.new_zeros((clients, self.outputs), dtype=torch.int64).index_add_(0, owners, targets.long())

    def miscounted(self, counts: Sequence[int], examples: int) -> str | None:
        wrong = super().miscounted(counts, examples)
        if wrong is None and max(counts) > examples:
            return f"{examples} examples and {max(counts)} of one label"
        return wrong

    def strata(self, targets: Tensor) -> Array:
        """The set of labels of each example: splits are stratified by whole sets."""
        return np.unique(targets.numpy(), axis=0, return_inverse=True)[1].reshape(-1)

    def says(self, value: Tensor) -> str:
        return ", ".join(name for name, there in zip(self.labels, value.tolist(), strict=True) if there) or "none"
