"""How well the scores rank: area under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.brief import brief
from plures.given import Given
from plures.metrics.metric import Metric, Predictions

HELD = 2**21
"""Scores that are sorted at a time."""


def ranked(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Scores to rank by and whether each class is the true one, ``(clients, examples, rankings)`` both.

    For two classes there is one ranking, by the probability of the second; for more classes and for labels, one each.
    Probabilities are in double precision: with more than two classes and with labels, odds beyond 2**53 are ties.
    An example whose outputs are not finite counts as ranked on the wrong side of all others.
    """
    scores, targets = predictions.chances, predictions.targets
    if targets.dim() == scores.dim():
        true = targets > 0.5
    else:
        true = targets.unsqueeze(-1) == torch.arange(scores.shape[-1], device=targets.device)
        if scores.shape[-1] == 2:
            scores, true = _second(scores), true[..., 1:]
    wrong = torch.where(true, -math.inf, math.inf).to(scores)
    return torch.where(predictions.finite.unsqueeze(-1), scores, wrong), true


def _second(chances: Tensor) -> Tensor:
    """A score that ranks as the probability of the second of two classes does, even where that rounds to 1.

    Above one half it is the inverse of the first class's, which is exact however small it is.
    """
    first, second = chances[..., :1], chances[..., 1:]
    return torch.where(second < 0.5, second, (1 / first).clamp(max=torch.finfo(chances.dtype).max))


@brief
@dataclass(frozen=True)
class Ordered:
    """Examples in the order of their scores, the lowest first; ``(rows, examples)`` each, one row for each ranking.

    Attributes:
        scores: the scores.
        won: weight of an example that is positive, else 0.
        lost: weight of an example that is negative, else 0.
        first: place of the first example with the same score.
        last: place of the last one.
    """

    scores: Tensor
    won: Tensor
    lost: Tensor
    first: Tensor
    last: Tensor

    def below(self, weight: Tensor) -> Tensor:
        """Weight of the examples whose score is lower than an example's."""
        return weight.cumsum(1).sub(weight).gather(1, self.first)

    def upto(self, weight: Tensor) -> Tensor:
        """Weight of the examples whose score is at most an example's."""
        return weight.cumsum(1).gather(1, self.last)


def mean_over_rankings(value: Callable[[Ordered], Tensor], weight: Tensor, scores: Tensor, true: Tensor) -> Tensor:
    """Mean of a function over a client's rankings; rankings for which it is NaN are left out.

    Args:
        value: ``(ordered) -> (rows,)``.
        weight: ``(clients, examples)``.
        scores: ``(clients, examples, rankings)``; equal scores are ties.
        true: of the same shape, which examples are positive.
    """
    found = []
    several = max(1, HELD // max(1, weight.numel()))
    for score, positive in zip(torch.split(scores, several, -1), torch.split(true, several, -1), strict=True):
        rows = score.shape[0], score.shape[2], score.shape[1]
        counted = weight.double().unsqueeze(1).expand(rows).flatten(0, 1)
        won = torch.where(positive.transpose(1, 2).flatten(0, 1), counted, 0.0)
        ordered, order = torch.where(counted > 0, score.transpose(1, 2).flatten(0, 1), 0.0).sort(dim=1)
        place = torch.arange(rows[2], device=weight.device).expand_as(order)
        step = ordered.diff(dim=1) != 0
        first = torch.where(F.pad(step, (1, 0), value=True), place, 0).cummax(1).values
        last = torch.where(F.pad(step, (0, 1), value=True), place, rows[2]).flip(1).cummin(1).values.flip(1)
        won, lost = won.gather(1, order), (counted - won).gather(1, order)
        found.append(value(Ordered(ordered, won, lost, first, last)).view(rows[:2]))
    return torch.cat(found, 1).nanmean(1)


def area(ordered: Ordered) -> Tensor:
    """The share of pairs of a positive and a negative example that are in the right order, a tie counting half.

    It equals the area under the ROC curve (Hanley, McNeil 1982); a pair counts by the product of its weights.
    """
    won, lost = ordered.won, ordered.lost
    pairs = won * (ordered.below(lost) + ordered.upto(lost)) / 2
    return pairs.sum(1) / (won.sum(1) * lost.sum(1))


ONE_CLASS = "where all examples are of one class"

auroc = Metric(
    "auroc", "AUROC", ranked, Given(mean_over_rankings, area), higher=True, range=(0, 1), undefined=ONE_CLASS
)
"""Area under the ROC curve: for two classes, that of the second; otherwise the mean over classes, each against the
rest (scikit-learn's ``roc_auc_score(multi_class="ovr")``). Classes that none or all of a client's examples belong to
are left out of its mean."""
