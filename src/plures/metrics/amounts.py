"""How far predicted amounts are from the truth, where not all errors cost the same."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.given import Given
from plures.metrics.errors import misses
from plures.metrics.metric import Metric, Predictions, mean

LARGE = 50.0
"""Largest exponent of the NASA score, so that a single prediction does not make a client's score infinite."""


def relative(predictions: Predictions) -> Tensor:
    """Error over the size of the truth, of every number; NaN where the truth is 0."""
    truth = predictions.targets.flatten(predictions.weight.dim()).double().abs()
    return torch.where(truth > 0, misses(predictions).double().abs() / truth, torch.nan)


def defined_mean(weight: Tensor, values: Tensor) -> Tensor:
    """Weighted mean of the numbers that are not NaN, ``(clients,)``; NaN where all are."""
    counted = torch.where(values.isnan(), 0.0, weight.double().unsqueeze(-1).expand_as(values))
    return torch.where(counted > 0, counted * values, 0.0).sum((1, 2)) / counted.sum((1, 2))


def pinned(share: float, predictions: Predictions) -> Tensor:
    """The loss whose best constant is a quantile: ``share`` of what is missed above, the rest of what is below."""
    over = misses(predictions).double()
    return torch.where(over < 0, -share * over, (1 - share) * over).mean(-1)


def late(predictions: Predictions) -> Tensor:
    """``exp(d / 10) - 1`` of a prediction that is ``d`` too large, ``exp(-d / 13) - 1`` of one too small, summed."""
    over = misses(predictions).double()
    return torch.where(over < 0, -over / 13, over / 10).clamp(max=LARGE).expm1().sum(-1)


def total(weight: Tensor, values: Tensor) -> Tensor:
    """Weighted sum over each client's examples; NaN without examples."""
    sums = torch.where(weight > 0, weight.double() * values, 0.0).sum(1)
    return torch.where(weight.sum(1) > 0, sums, torch.nan)


mape = Metric(
    "mape",
    "mean absolute percentage error",
    relative,
    defined_mean,
    unit="%",
    undefined="where the truth is 0 in all examples",
)
"""Mean of the error over the size of the truth; numbers whose truth is 0 are left out."""

nasa_score = Metric("nasa_score", "NASA score", late, total)
"""Asymmetric score of predicted remaining life (Saxena, Goebel, Simon, Eklund 2008), a sum over a client's examples:
late predictions cost more than early ones. Exponents end at 50."""

mean_nasa_score = Metric("mean_nasa_score", "mean NASA score", late, mean)
"""The same as a mean over a client's examples, which does not grow with their number."""


def pinball(number: int) -> Metric:
    """Pinball loss of a quantile in per cent (Koenker, Bassett 1978): 50 is half the mean absolute error."""
    if not 0 < number < 100:
        raise PluresError(f"metric pinball_{number}: give a quantile of 1 to 99 per cent, such as pinball_90")
    return Metric(f"pinball_{number}", f"pinball loss of the {number} % quantile", Given(pinned, number / 100))
