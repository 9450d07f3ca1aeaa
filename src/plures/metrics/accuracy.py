"""How often the decision is right."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions


def right(predictions: Predictions) -> Tensor:
    """Whether the decision is right; with labels, the share that is right. Outputs that are not finite are wrong."""
    found = (predictions.decisions == predictions.targets).double()
    right = found.flatten(predictions.weight.dim()).mean(-1) if found.dim() > predictions.weight.dim() else found
    return torch.where(predictions.finite, right, 0.0)


accuracy = Metric("accuracy", "accuracy", right, higher=True, unit="%", range=(0, 1))
