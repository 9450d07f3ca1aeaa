"""How often the decision is right for imbalanced classes."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions


def decided(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Target and decision of every example; where outputs are not finite, the decision is -1, no class.

    Labels ``(clients, examples, labels)`` of 0 and 1 stay as they are, all wrong where outputs are not finite.
    """
    targets, decisions = predictions.targets.long(), predictions.decisions.long()
    if targets.dim() > predictions.weight.dim():
        return targets, torch.where(predictions.finite.unsqueeze(-1), decisions, 1 - targets)
    return targets, torch.where(predictions.finite, decisions, -1)


def counts(weight: Tensor, targets: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each class, the weight of the examples correctly assigned to it, assigned to it, and belonging to it.

    Args:
        weight: ``(clients, examples)``.
        targets: ``(clients, examples)`` classes, or ``(clients, examples, labels)`` of 0 and 1.
        decisions: shaped as ``targets``.

    Returns:
        ``(clients, classes)`` three times.
    """
    counted = weight.double()
    if targets.dim() > weight.dim():
        true, claimed = targets > 0, decisions > 0
        return tuple(torch.where(part, counted.unsqueeze(-1), 0.0).sum(1) for part in (true & claimed, claimed, true))  # type: ignore[return-value]
    classes = 1 + int(torch.stack([targets, decisions]).amax()) if targets.numel() else 1

    def total(of: Tensor, which: Tensor) -> Tensor:
        sums = counted.new_zeros(len(weight), classes)
        return sums.scatter_add_(1, of.clamp(min=0), torch.where(which, counted, 0.0))

    return total(targets, targets == decisions), total(decisions, decisions >= 0), total(targets, targets >= 0)


def mean_recall(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Mean recall over the classes that occur."""
    hits, _, true = counts(weight, targets, decisions)
    return (hits / true).nanmean(1)


def mean_f1(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Mean F1, the harmonic mean of precision and recall, over the classes that occur or are predicted."""
    hits, claimed, true = counts(weight, targets, decisions)
    return (2 * hits / (claimed + true)).nanmean(1)


balanced_accuracy = Metric(
    "balanced_accuracy", "balanced accuracy", decided, mean_recall, higher=True, unit="%", range=(0, 1)
)
macro_f1 = Metric("f1", "macro F1", decided, mean_f1, higher=True, range=(0, 1))
"""Same as scikit-learn's ``f1_score(average="macro")``."""
