"""How well the label at every position of an example is predicted; negative targets do not count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plures.given import Given
from plures.metrics.metric import Metric, Predictions, mean


def places(predictions: Predictions) -> Tensor:
    """Whether a position counts, ``(clients, examples, positions)``."""
    return predictions.targets.flatten(predictions.weight.dim()) >= 0


def right(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Of every example, the positions that are right and those that count; none is right where outputs diverged."""
    counted, size = places(predictions), predictions.weight.dim()
    found = (predictions.decisions.flatten(size) == predictions.targets.flatten(size)) & counted
    return torch.where(predictions.finite.unsqueeze(-1), found, False).sum(-1), counted.sum(-1)


def surprise(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Of every example, the sum of ``-log p`` of the true labels, and the positions that count."""
    counted, size = places(predictions), predictions.weight.dim()
    chances = predictions.chances.flatten(size, -2)
    own = chances.gather(-1, predictions.targets.flatten(size).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    found = torch.where(counted, -own.clamp(min=torch.finfo(own.dtype).tiny).log(), 0.0).sum(-1)
    return torch.where(predictions.finite, found, torch.inf), counted.sum(-1)


def share(weight: Tensor, part: Tensor, all_: Tensor) -> Tensor:
    """Sum of one number over that of another one, over a client's examples; NaN where nothing counts."""
    part, all_ = (torch.where(weight > 0, weight.double() * t.double(), 0.0).sum(1) for t in (part, all_))
    return part / all_


def perplexed(weight: Tensor, nats: Tensor, counted: Tensor) -> Tensor:
    return share(weight, nats, counted).exp()


def twice_of_sum(both: Tensor, said: Tensor, there: Tensor) -> Tensor:
    """Dice, of the sizes of what is both, predicted, and there."""
    return 2 * both / (said + there)


def of_union(both: Tensor, said: Tensor, there: Tensor) -> Tensor:
    """The Jaccard index, of the sizes of what is both, predicted, and there."""
    return both / (said + there - both)


def overlap(part: Callable[[Tensor, Tensor, Tensor], Tensor], predictions: Predictions) -> Tensor:
    """Of every example, the mean overlap of the labels after the first one, which is the background.

    A label that is neither there nor predicted counts 1, as in FLamby (du Terrail et al. 2022).
    """
    counted, size = places(predictions), predictions.weight.dim()
    labels = torch.arange(1, predictions.chances.shape[-1], device=counted.device)
    claimed, true = (
        (t.flatten(size).unsqueeze(-1) == labels) & counted.unsqueeze(-1)
        for t in (predictions.decisions, predictions.targets)
    )
    both, said, there = ((found.double()).sum(-2) for found in (claimed & true, claimed, true))
    each = torch.where(said + there > 0, part(both, said, there), 1.0).mean(-1)
    return torch.where(predictions.finite, each, 0.0)


ALONE = "where no position counts"

position_accuracy = Metric("accuracy", "accuracy", right, share, higher=True, unit="%", range=(0, 1), undefined=ALONE)
"""Share of a client's positions whose label is right, all positions counting alike."""

perplexity = Metric("perplexity", "perplexity", surprise, perplexed, range=(1, 1e12), undefined=ALONE)
"""``exp`` of the mean of ``-log p`` over a client's positions."""

dice = Metric(
    "dice",
    "Dice",
    Given(overlap, twice_of_sum),
    mean,
    higher=True,
    range=(0, 1),
)
"""Mean over a client's examples, not over its pixels."""

iou = Metric(
    "iou",
    "IoU",
    Given(overlap, of_union),
    mean,
    higher=True,
    range=(0, 1),
)
"""Intersection over union (Jaccard index), mean over a client's examples."""
