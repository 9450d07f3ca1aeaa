"""How well the scores find what is rare: average precision."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.auroc import ONE_CLASS, below, macro, ranked
from plures.metrics.metric import Metric


def precisions(weight: Tensor, scores: Tensor, true: Tensor) -> Tensor:
    """Mean over positive examples of the precision among all that score as high: the area under the steps of the curve
    of precision and recall, without interpolation. An infinite score counts as precision 0.

    Args:
        weight: ``(clients, examples)``.
        scores: ``(clients, examples, rankings)``.
        true: of the same shape, which examples are positive.
    """
    found = []
    for score, positive in zip(scores.unbind(-1), true.unbind(-1), strict=True):
        counted = weight.double()
        won, score = torch.where(positive, counted, 0.0), torch.where(weight > 0, score, 0.0)
        hits, claimed = (part.sum(1, keepdim=True) - below(part, score)[0] for part in (won, counted))
        share = torch.where((won > 0) & score.isfinite(), won * hits / claimed, 0.0).sum(1) / won.sum(1)
        found.append(torch.where(won.sum(1) < counted.sum(1), share, torch.nan))
    return macro(torch.stack(found, 1))


average_precision = Metric(
    "auprc",
    "average precision",
    ranked,
    precisions,
    higher=True,
    range=(0, 1),
    undefined=ONE_CLASS,
)
"""Area under the curve of precision and recall, as ``average_precision_score`` of scikit-learn has it; with several
classes the mean over them, as for :data:`~plures.metrics.auroc.auroc`."""
