"""How well a predicted log hazard orders and explains times until an event, some of which are censored.

A target is a time and whether the event was observed then (1) or the example was last seen without it (0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plures.metrics.metric import Metric, Predictions, mean

HELD = 2**22
"""Pairs of examples that are compared at a time."""


def cox(hazards: Tensor, times: Tensor, events: Tensor, weight: Tensor | None = None) -> Tensor:
    """What every example of one sample adds to Cox's negative log partial likelihood, ``(n,)``; 0 if it is censored.

    ``log sum_{j: t_j >= t_i} w_j exp(h_j) - h_i`` for an observed event: tied events share one set at risk
    (Breslow 1974).

    Args:
        hazards: ``(n,)`` log hazards ``h``.
        times: ``(n,)``.
        events: ``(n,)`` 1 where the event was observed, 0 where the time is censored.
        weight: ``(n,)`` how much each example counts; those of weight 0 are not at risk.
    """
    counted = torch.ones_like(hazards) if weight is None else weight.to(hazards)
    earlier = -torch.where(counted > 0, times, -torch.inf)
    ordered, order = earlier.sort()
    at_risk = (hazards + counted.log())[order].logcumsumexp(0)
    last = torch.searchsorted(ordered, earlier, right=True) - 1
    return torch.where((events > 0) & (counted > 0), at_risk[last] - hazards, 0.0)


def pairs(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Log hazards ``(clients, examples)``, NaN where they are not finite, and targets ``(clients, examples, 2)``."""
    hazards = predictions.outputs.squeeze(-1).double()
    return torch.where(predictions.finite, hazards, torch.nan), predictions.targets.double()


def concordance(weight: Tensor, hazards: Tensor, targets: Tensor) -> Tensor:
    """Share of the comparable pairs whose earlier event has the higher hazard; a tie of hazards counts half.

    A pair is comparable if the earlier time is an event; an event and a censored time that are equal are, too.
    """
    return torch.stack([_alone(*one) for one in zip(weight.double(), hazards, targets, strict=True)])


def _alone(weight: Tensor, hazards: Tensor, targets: Tensor) -> Tensor:
    counted = weight > 0
    own, risk, (times, events) = weight[counted], hazards[counted], targets[counted].unbind(1)
    right, all_ = own.new_zeros(()), own.new_zeros(())
    for rows in torch.split((events > 0).nonzero().squeeze(1), max(1, HELD // max(1, len(own)))):
        time, hazard = times[rows].unsqueeze(1), risk[rows].unsqueeze(1)
        later = (times > time) | ((times == time) & (events == 0))
        pair = torch.where(later, own[rows].unsqueeze(1) * own, 0.0)
        right = right + (pair * ((hazard > risk).double() + (hazard == risk).double() / 2)).sum()
        all_ = all_ + pair.sum()
    return right / all_


def partial_likelihood(weight: Tensor, hazards: Tensor, targets: Tensor) -> Tensor:
    """Mean over each client's examples of Cox's negative log partial likelihood, among all of them."""
    found = zip(hazards, *targets.unbind(2), weight.double(), strict=True)
    terms = torch.stack([cox(*one) for one in found])
    return mean(weight, torch.where(hazards.isnan(), torch.inf, terms))


c_index = Metric(
    "c_index",
    "C-index",
    pairs,
    concordance,
    higher=True,
    range=(0, 1),
    undefined="where no two examples can be compared",
)
"""Harrell's concordance index (Harrell et al. 1982), as ``lifelines`` computes it."""

cox_loss = Metric("loss", "partial likelihood loss", pairs, partial_likelihood)
"""Unlike the loss in training, which compares the examples of a batch, it compares all of a client's examples."""
