"""How well a user's items are ranked by predicted ratings."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.given import Given
from plures.metrics.metric import Metric, Predictions, alone


def rated(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Predicted and true rating of every item; a prediction that is not finite ranks last."""
    found = predictions.decisions.squeeze(-1).double()
    return torch.where(predictions.finite, found, -torch.inf), predictions.targets.squeeze(-1).double()


def discounted(most: int, scores: Tensor, gains: Tensor) -> Tensor:
    """Discounted cumulative gain of the first items; items with equal scores share the mean of their gains."""
    discount = 1 / torch.arange(2, len(scores) + 2, dtype=torch.float64, device=scores.device).log2()
    discount[most:] = 0
    _, group, size = torch.unique(-scores, return_inverse=True, return_counts=True)
    shared = torch.zeros_like(size, dtype=torch.float64).index_add_(0, group, gains) / size
    ends = size.cumsum(0)
    sums = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    found: Tensor = (shared * (sums[ends] - sums[ends - size])).sum()
    return found


def cumulative(most: int, scores: Tensor, gains: Tensor) -> float:
    best = float(discounted(most, gains, gains))
    return float(discounted(most, scores, gains)) / best if best > 0 else float("nan")


def liked_first(most: int, least: float, scores: Tensor, gains: Tensor) -> float:
    """Chance that a liked item is among the first ones, ties broken at random; NaN without a liked item."""
    liked = gains >= least
    if not bool(liked.any()):
        return float("nan")
    border = scores.topk(min(most, len(scores))).values[-1]
    if bool((liked & (scores > border)).any()):
        return 1.0
    tied, open_ = scores == border, min(most, len(scores)) - int((scores > border).sum())
    missing, several, missed = int((tied & ~liked).sum()), int(tied.sum()), 1.0
    for drawn in range(open_):
        missed *= max(0, missing - drawn) / (several - drawn)
    return 1 - missed


def _first(name: str, number: int) -> int:
    if number < 1:
        raise PluresError(f"metric {name}_{number}: give a number of items of at least 1, such as {name}_10")
    return number


def ndcg(number: int) -> Metric:
    """Normalised discounted cumulative gain of the first items, as scikit-learn's ``ndcg_score`` computes it.

    Gains are the ratings; the items ranked are those that the client rated in the split.
    """
    most = _first("ndcg", number)
    value = alone(Given(cumulative, most))
    without = "where all ratings are 0"
    return Metric(f"ndcg_{most}", f"NDCG@{most}", rated, value, higher=True, range=(0, 1), undefined=without)


def hit(liked: float, number: int) -> Metric:
    """Whether an item that the client likes is among the first ones."""
    most = _first("hit", number)
    value = alone(Given(liked_first, most, liked))
    without = f"where no rating is {liked:g} or more"
    return Metric(f"hit_{most}", f"hit rate@{most}", rated, value, higher=True, range=(0, 1), undefined=without)
