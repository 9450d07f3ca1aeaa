"""How far expected counts are from the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions


def deviance(predictions: Predictions) -> Tensor:
    """``2 (y log(y / m) - y + m)`` of an expected count ``m``, the mean over outputs; infinite where it diverged."""
    places = predictions.weight.dim()
    expected, true = (t.double().flatten(places) for t in (predictions.decisions, predictions.targets))
    expected = expected.clamp(min=torch.finfo(torch.float64).tiny)
    found = 2 * (torch.special.xlogy(true, true / expected) - true + expected)
    return torch.where(predictions.finite, found.mean(-1), torch.inf)


poisson_deviance = Metric("poisson_deviance", "Poisson deviance", deviance)
"""As scikit-learn's ``mean_poisson_deviance`` computes it."""
