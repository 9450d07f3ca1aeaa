"""Metrics: how good a client's predictions are, one number each. Independent of tasks and the engine."""

from plures.metrics.accuracy import accuracy
from plures.metrics.auroc import auroc
from plures.metrics.average_precision import average_precision
from plures.metrics.balance import balanced_accuracy, macro_f1
from plures.metrics.calibration import brier, ece
from plures.metrics.catalogue import AMOUNTS, SEVERAL_CLASSES, STEPS, TIMES, TWO_CLASSES, Catalogue, liked_items
from plures.metrics.counts import poisson_deviance
from plures.metrics.errors import mae, r2, rmse
from plures.metrics.losses import cross_entropy, mean_loss, mean_squared_error
from plures.metrics.metric import Metric, Predictions, alone, mean
from plures.metrics.positions import dice, iou, perplexity, position_accuracy
from plures.metrics.ranges import coverage
from plures.metrics.survival import c_index, cox_loss

CLASSIFICATION: tuple[Metric, ...] = (
    accuracy,
    cross_entropy,
    ece,
    brier,
    auroc,
    average_precision,
    balanced_accuracy,
    macro_f1,
)
MULTILABEL: tuple[Metric, ...] = (accuracy, cross_entropy, auroc, average_precision, macro_f1)
REGRESSION: tuple[Metric, ...] = (rmse, mae, mean_squared_error, r2)
COUNTS: tuple[Metric, ...] = (poisson_deviance, mae, rmse, mean_loss)
QUANTILES: tuple[Metric, ...] = (mean_loss, mae, coverage)
RATINGS: tuple[Metric, ...] = (rmse, mae, mean_squared_error)
SEGMENTATION: tuple[Metric, ...] = (dice, iou, position_accuracy, cross_entropy)
TOKENS: tuple[Metric, ...] = (position_accuracy, perplexity, cross_entropy)
SURVIVAL: tuple[Metric, ...] = (c_index, cox_loss)

__all__ = [
    "AMOUNTS",
    "CLASSIFICATION",
    "COUNTS",
    "MULTILABEL",
    "QUANTILES",
    "RATINGS",
    "REGRESSION",
    "SEGMENTATION",
    "SEVERAL_CLASSES",
    "STEPS",
    "SURVIVAL",
    "TIMES",
    "TOKENS",
    "TWO_CLASSES",
    "Catalogue",
    "Metric",
    "Predictions",
    "alone",
    "liked_items",
    "mean",
    "mean_loss",
]
