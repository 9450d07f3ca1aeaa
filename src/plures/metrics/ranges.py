"""Whether predicted ranges hold the truth, and errors at single steps."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.given import Given
from plures.metrics.errors import misses, root_mean
from plures.metrics.metric import Metric, Predictions


def covered(predictions: Predictions) -> Tensor:
    """Whether the truth lies between the first and the last output."""
    least, most, true = predictions.outputs[..., 0], predictions.outputs[..., -1], predictions.targets.squeeze(-1)
    return torch.where(predictions.finite, (least <= true) & (true <= most), False)


coverage = Metric("coverage", "coverage", covered, higher=True, unit="%", range=(0, 1))
"""Share of the examples between the outermost quantiles. It should equal the difference of their levels: with levels
0.1 and 0.9, four fifths. A larger one is no better, so choose rounds by the loss."""


def missed(number: int, predictions: Predictions) -> Tensor:
    """Error at one step, counted from 1."""
    found = misses(predictions)
    if not 1 <= number <= found.shape[-1]:
        raise PluresError(f"there is no step {number}: this forecast has {found.shape[-1]}, counted from 1")
    return found[..., number - 1]


def _square(number: int, predictions: Predictions) -> Tensor:
    return missed(number, predictions).square()


def _absolute(number: int, predictions: Predictions) -> Tensor:
    return missed(number, predictions).abs()


def rmse_step(number: int) -> Metric:
    """Root mean squared error at one step of a forecast."""
    return Metric(f"rmse_step_{number}", f"RMSE at step {number}", Given(_square, number), root_mean)


def mae_step(number: int) -> Metric:
    """Mean absolute error at one step of a forecast."""
    return Metric(f"mae_step_{number}", f"MAE at step {number}", Given(_absolute, number))
