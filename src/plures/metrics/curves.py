"""Points on curves of two classes, whose threshold moves along the scores of a client's own examples.

Each says how well scores rank, as the area under the ROC curve does. None is what a client reaches with a threshold
that was fixed before its examples were seen: for that, choose thresholds on calibration data (the method ``threshold``)
and measure sensitivity, specificity or precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.given import Given
from plures.metrics.auroc import ONE_CLASS, Ordered, mean_over_rankings, ranked
from plures.metrics.metric import Metric


def rates(ordered: Ordered) -> tuple[Tensor, Tensor]:
    """Share of the positive and of the negative examples that score at least as high as each example.

    Returns:
        True and false positive rates, ``(rows, examples)``; NaN where there is no positive or no negative example.
    """
    hits, alarms = (
        part.sum(1, keepdim=True) - torch.where(ordered.scores.isfinite(), ordered.below(part), 0.0)
        for part in (ordered.won, ordered.lost)
    )
    return hits / ordered.won.sum(1, keepdim=True), alarms / ordered.lost.sum(1, keepdim=True)


def separation(ordered: Ordered) -> Tensor:
    """Largest distance of the two classes' distributions of scores (Kolmogorov, Smirnov)."""
    found, alarms = rates(ordered)
    return (found - alarms).amax(1)


def found_within(most: float, ordered: Ordered) -> Tensor:
    """Largest true positive rate whose false positive rate is at most ``most``."""
    found, alarms = rates(ordered)
    allowed = torch.where(alarms <= most + 1e-12, found, 0.0).amax(1)
    return torch.where(found.isnan().any(1) | alarms.isnan().any(1), torch.nan, allowed)


def kept_within(least: float, ordered: Ordered) -> Tensor:
    """Largest true negative rate whose true positive rate is at least ``least``."""
    found, alarms = rates(ordered)
    allowed = torch.where(found >= least - 1e-12, 1 - alarms, 0.0).amax(1)
    return torch.where(found.isnan().any(1) | alarms.isnan().any(1), torch.nan, allowed)


def found_precisely(least: float, ordered: Ordered) -> Tensor:
    """Largest recall whose precision is at least ``least``; 0 where no threshold is as precise."""
    hits = ordered.won.sum(1, keepdim=True) - ordered.below(ordered.won)
    claimed = hits + ordered.lost.sum(1, keepdim=True) - ordered.below(ordered.lost)
    recall = hits / ordered.won.sum(1, keepdim=True)
    precise = (hits >= least * claimed - 1e-12) & ordered.scores.isfinite() & (claimed > 0)
    best = torch.where(precise, recall, 0.0).amax(1)
    return torch.where(ordered.lost.sum(1) > 0, best, torch.nan)


def top(share: float, ordered: Ordered) -> Tensor:
    """Share of the positive examples that are among the given share of all examples with the highest scores.

    An example at the border counts in part, and so do all that tie with it, alike.
    """
    counted = ordered.won + ordered.lost
    total, positive = counted.sum(1, keepdim=True), ordered.won.sum(1)
    taken = share * total
    above = total - ordered.upto(counted)
    tied = ordered.upto(counted) - ordered.below(counted)
    part = ((taken - above) / torch.where(tied > 0, tied, 1.0)).clamp(0, 1)
    return (torch.where(ordered.scores.isfinite(), ordered.won * part, 0.0)).sum(1) / positive


def lifted(share: float, ordered: Ordered) -> Tensor:
    """How many times as frequent the positive examples are among the top as among all."""
    return top(share, ordered) / share


def metric(
    name: str,
    title: str,
    value: Callable[[Ordered], Tensor],
    unit: str = "%",
    most: float = 1.0,
    undefined: str = ONE_CLASS,
) -> Metric:
    """A metric of a curve."""
    return Metric(
        name,
        title,
        ranked,
        Given(mean_over_rankings, value),
        higher=True,
        unit=unit,
        range=(0, most),
        undefined=undefined,
    )


def percent(name: str, number: int) -> float:
    """A number of per cent between 1 and 99, as a share."""
    if not 0 < number < 100:
        raise PluresError(f"metric {name}_{number}: give a whole number of per cent from 1 to 99, such as {name}_90")
    return number / 100


ks = metric("ks", "KS", separation)
"""Kolmogorov-Smirnov statistic of the scores of the two classes: Youden's index at the best threshold."""


def sensitivity_at_specificity(number: int) -> Metric:
    """Sensitivity on the ROC curve where specificity is at least a number of per cent."""
    share = percent("sensitivity_at_specificity", number)
    value = Given(found_within, 1 - share)
    return metric(f"sensitivity_at_specificity_{number}", f"sensitivity at {number} % specificity", value)


def specificity_at_sensitivity(number: int) -> Metric:
    """Specificity on the ROC curve where sensitivity is at least a number of per cent."""
    share = percent("specificity_at_sensitivity", number)
    value = Given(kept_within, share)
    return metric(f"specificity_at_sensitivity_{number}", f"specificity at {number} % sensitivity", value)


def recall_at_fpr(number: int) -> Metric:
    """Recall on the ROC curve where at most a number of per cent of the first class is taken for the second."""
    share = percent("recall_at_fpr", number)
    return metric(f"recall_at_fpr_{number}", f"recall at {number} % false positives", Given(found_within, share))


def recall_at_precision(number: int) -> Metric:
    """Recall on the curve of precision and recall where precision is at least a number of per cent."""
    share = percent("recall_at_precision", number)
    return metric(f"recall_at_precision_{number}", f"recall at {number} % precision", Given(found_precisely, share))


def gain(number: int) -> Metric:
    """Share of the second class among the given per cent of examples with the highest scores."""
    share, without = percent("gain", number), "where no example is of the second class"
    return metric(f"gain_{number}", f"gain of the top {number} %", Given(top, share), undefined=without)


def lift(number: int) -> Metric:
    """How many times as frequent the second class is among the top per cent of scores as among all examples."""
    share, without = percent("lift", number), "where no example is of the second class"
    return metric(f"lift_{number}", f"lift of the top {number} %", Given(lifted, share), "", 1 / share, without)
