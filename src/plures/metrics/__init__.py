"""Metrics: what a client's predictions are worth, one number each. Knows no task and no engine."""

from plures.metrics.accuracy import accuracy
from plures.metrics.calibration import brier, ece
from plures.metrics.errors import mae, rmse
from plures.metrics.losses import cross_entropy, mean_squared_error
from plures.metrics.metric import Metric, Predictions, alone, mean

CLASSIFICATION: tuple[Metric, ...] = (accuracy, cross_entropy, ece, brier)
REGRESSION: tuple[Metric, ...] = (rmse, mae, mean_squared_error)

__all__ = [
    "CLASSIFICATION",
    "REGRESSION",
    "Metric",
    "Predictions",
    "alone",
    "mean",
]
