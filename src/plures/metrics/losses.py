"""The task's own loss."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions


def loss(predictions: Predictions) -> Tensor:
    """The loss; infinite where outputs are not finite."""
    return torch.where(predictions.finite, predictions.losses, torch.inf)


cross_entropy = Metric("loss", "cross-entropy", loss)
mean_loss = Metric("loss", "mean loss", loss)
mean_squared_error = Metric("loss", "mean squared error", loss)
