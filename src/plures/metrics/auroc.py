"""How well the scores rank: area under the ROC curve."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions


def ranked(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Scores to rank by and whether each class is the true one, ``(clients, examples, rankings)`` both.

    Of two classes there is one ranking, by the probability of the second; of more classes and of labels, one for each.
    Where outputs are not finite, the example counts as ranked on the wrong side of all others.
    """
    scores, targets = predictions.chances, predictions.targets
    if targets.dim() == scores.dim():
        true = targets > 0.5
    else:
        true = targets.unsqueeze(-1) == torch.arange(scores.shape[-1], device=targets.device)
        if scores.shape[-1] == 2:
            scores, true = scores[..., 1:], true[..., 1:]
    wrong = torch.where(true, -math.inf, math.inf).to(scores)
    return torch.where(predictions.finite.unsqueeze(-1), scores, wrong), true


def below(weight: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of the examples with a smaller score than each, and with one that is at most its own.

    Args:
        weight: ``(clients, examples)``.
        scores: ``(clients, examples)``; equal scores are ties.
    """
    ordered, order = scores.sort(dim=1)
    sums = torch.nn.functional.pad(weight.gather(1, order).cumsum(1), (1, 0))
    left, right = (torch.searchsorted(ordered, scores.contiguous(), right=side) for side in (False, True))
    return sums.gather(1, left), sums.gather(1, right)


def macro(values: Tensor) -> Tensor:
    """Mean over the rankings ``(clients, rankings)`` that are defined; NaN where none is."""
    return values.nanmean(1)


def areas(weight: Tensor, scores: Tensor, true: Tensor) -> Tensor:
    """The share of pairs of a positive and a negative example that are in the right order, a tie counting half.

    It equals the area under the ROC curve (Hanley, McNeil 1982), and a pair counts by the product of its weights.

    Args:
        weight: ``(clients, examples)``.
        scores: ``(clients, examples, rankings)``.
        true: of the same shape, which examples are positive.
    """
    found = []
    for score, positive in zip(scores.unbind(-1), true.unbind(-1), strict=True):
        won, lost = (torch.where(side, weight.double(), 0.0) for side in (positive, ~positive))
        under, upto = below(lost, torch.where(weight > 0, score, 0.0))
        found.append((won * (under + upto)).sum(1) / 2 / (won.sum(1) * lost.sum(1)))
    return macro(torch.stack(found, 1))


ONE_CLASS = "where all examples are of one class"

auroc = Metric("auroc", "AUROC", ranked, areas, higher=True, range=(0, 1), undefined=ONE_CLASS)
"""Area under the ROC curve: of two classes, that of the second one; otherwise the mean over classes, each against the
rest (``roc_auc_score(multi_class="ovr")`` of scikit-learn). Classes of which a client has no example, or no other
example, are left out of its mean."""
