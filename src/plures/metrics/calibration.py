"""Whether stated probabilities are right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.metrics.accuracy import right
from plures.metrics.metric import Metric, Predictions

BINS = 10
"""Bins of equal width of the stated probability."""


def bins(confidence: Tensor) -> Tensor:
    """The bin ``[lower, upper)`` of a probability; 1 is in the last one."""
    return (confidence * BINS).long().clamp(max=BINS - 1)


def stated(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """The largest stated probability of an example, and whether the decision is right.

    Where outputs are not finite, the model counts as certain and wrong.
    """
    confidence = torch.where(predictions.finite, predictions.chances.amax(-1), 1.0)
    return confidence, right(predictions)


def expected_error(weight: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """Expected calibration error with ten bins (Naeini, Cooper, Hauskrecht 2015).

    Args:
        weight: ``(clients, examples)``.
        confidence: ``(clients, examples)`` largest predicted probability.
        correct: ``(clients, examples)`` 1 where the prediction was right.
    """
    counted, gaps = weight.double(), (confidence - correct).double()
    gaps = torch.where(counted > 0, counted * gaps, 0.0)
    sums = counted.new_zeros(len(weight), BINS).scatter_add_(1, bins(confidence), gaps)
    return sums.abs().sum(1) / counted.sum(1)


def square(predictions: Predictions) -> Tensor:
    """Squared distance of the probabilities from the truth, summed over classes (Brier 1950)."""
    chances = predictions.chances
    found = (chances - F.one_hot(predictions.targets, chances.shape[-1])).square().sum(-1)
    return torch.where(predictions.finite, found, torch.inf)


ece = Metric("ece", "calibration error", stated, expected_error, unit="%", range=(0, 1))
brier = Metric("brier", "Brier score", square, range=(0, 2))
