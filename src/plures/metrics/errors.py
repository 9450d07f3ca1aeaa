"""How far predicted numbers are from the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import FAR, Metric, Predictions, mean


def misses(predictions: Predictions) -> Tensor:
    """``(clients, examples, outputs)`` differences from the truth; infinite where outputs are not finite."""
    found = (predictions.decisions - predictions.targets).flatten(predictions.weight.dim())
    return torch.where(predictions.finite.unsqueeze(-1), found, torch.inf)


def square(predictions: Predictions) -> Tensor:
    return misses(predictions).square().mean(-1)


def absolute(predictions: Predictions) -> Tensor:
    return misses(predictions).abs().mean(-1)


def root_mean(weight: Tensor, squares: Tensor) -> Tensor:
    return mean(weight, squares).sqrt()


rmse = Metric("rmse", "root mean squared error", square, root_mean)
mae = Metric("mae", "mean absolute error", absolute)


def explained(weight: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets' variance that is explained, mean over outputs; NaN where the targets do not vary."""
    counted, truth = weight.double().unsqueeze(-1), targets.double()
    centre = mean(weight, truth).unsqueeze(1)
    left, all_ = (
        torch.where(counted > 0, counted * (truth - other).square(), 0.0).sum(1) for other in (outputs.double(), centre)
    )
    return torch.where(all_ > 0, 1 - left / all_, torch.nan).nanmean(1)


def both(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Predicted and true numbers, ``(clients, examples, numbers)``; infinite where outputs are not finite."""
    places = predictions.weight.dim()
    outputs = torch.where(predictions.finite.unsqueeze(-1), predictions.decisions.flatten(places), torch.inf)
    return outputs, predictions.targets.flatten(places)


ALIKE = "where the truth does not vary"

r2 = Metric("r2", "R\N{SUPERSCRIPT TWO}", both, explained, higher=True, range=(-FAR, 1), undefined=ALIKE)
"""As scikit-learn's ``r2_score`` computes it, leaving out outputs whose targets do not vary."""
