"""How far predicted numbers are from the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions, mean


def misses(predictions: Predictions) -> Tensor:
    """``(clients, examples, outputs)`` differences from the truth; infinite where outputs are not finite."""
    found = (predictions.outputs - predictions.targets).flatten(predictions.weight.dim())
    return torch.where(predictions.finite.unsqueeze(-1), found, torch.inf)


def square(predictions: Predictions) -> Tensor:
    return misses(predictions).square().mean(-1)


def absolute(predictions: Predictions) -> Tensor:
    return misses(predictions).abs().mean(-1)


def root_mean(weight: Tensor, squares: Tensor) -> Tensor:
    return mean(weight, squares).sqrt()


rmse = Metric("rmse", "root mean squared error", square, root_mean)
mae = Metric("mae", "mean absolute error", absolute)
