"""How well the scores find a rare class: average precision."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.given import Given
from plures.metrics.auroc import ONE_CLASS, Ordered, mean_over_rankings, ranked
from plures.metrics.metric import Metric


def precision(ordered: Ordered) -> Tensor:
    """Mean over positive examples of the precision among all that score as high: the area under the steps of the
    precision-recall curve, without interpolation. An infinite score counts as precision 0.
    """
    won, counted = ordered.won, ordered.won + ordered.lost
    hits, claimed = (part.sum(1, keepdim=True) - ordered.below(part) for part in (won, counted))
    share = torch.where((won > 0) & ordered.scores.isfinite(), won * hits / claimed, 0.0).sum(1) / won.sum(1)
    return torch.where(ordered.lost.sum(1) > 0, share, torch.nan)


average_precision = Metric(
    "auprc",
    "average precision",
    ranked,
    Given(mean_over_rankings, precision),
    higher=True,
    range=(0, 1),
    undefined=ONE_CLASS,
)
"""Area under the precision-recall curve, as scikit-learn's ``average_precision_score`` computes it; with several
classes the mean over them, as for :data:`~plures.metrics.auroc.auroc`."""
