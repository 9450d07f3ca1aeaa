"""How well a predicted log hazard orders and explains times until an event, some of which are censored.

A target is a time and whether the event was observed then (1) or the example was last seen without it (0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
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


@brief
@dataclass(frozen=True)
class Baseline:
    """What one client's train rows say of time: step functions that are constant from each time until the next one.

    Attributes:
        times: ``(m,)`` 0 and the different times, the last of which ends the follow-up.
        survival: ``(m,)`` log of the survival function of an example of log hazard 0.
        uncensored: ``(m,)`` probability of not being censored until after each time.
    """

    times: Tensor
    survival: Tensor
    uncensored: Tensor


def baseline(hazards: Tensor, targets: Tensor, weight: Tensor) -> Baseline:
    """The survival function at log hazard 0, and that of censoring.

    Kalbfleisch and Prentice (1973): ``S(t) = prod a_k`` over event times, ``a_k = (1 - d_k / r_k) ** (1 / e_k)`` with
    the relative hazards ``d_k`` of the events, ``r_k`` of those at risk, and the mean ``e_k`` of the events', which
    tied ones share. An example of log hazard h has ``S(t) ** exp(h)``; with equal hazards that is the estimate of
    Kaplan and Meier (1958), by which censoring is estimated, too. An event comes before a censoring at the same time.

    Args:
        hazards: ``(n,)`` log hazards.
        targets: ``(n, 2)`` times and events.
        weight: ``(n,)`` how much each example counts.
    """
    times, events = targets.T.contiguous()
    relative = hazards.exp() * weight
    seen: Tensor = torch.cat([times.new_zeros(1), times]).unique()  # type: ignore[no-untyped-call]
    at = torch.searchsorted(seen, times)

    def summed(values: Tensor) -> Tensor:
        return seen.new_zeros(len(seen)).index_add(0, at, values)

    def later(values: Tensor) -> Tensor:
        return summed(values).flip(0).cumsum(0).flip(0)

    died, counts = summed(relative * events), summed(weight * events)
    share = torch.where(counts > 0, died / later(relative), 0.0).clamp(0, 1)
    mean_hazard = torch.where(counts > 0, died / torch.where(counts > 0, counts, 1.0), 1.0)
    survival = (torch.log1p(-share) / mean_hazard).cumsum(0)
    censored = summed(weight * (1 - events))
    exposed = later(weight) - summed(weight * events)
    stays = 1 - torch.where(censored > 0, censored / torch.where(censored > 0, exposed, 1.0), 0.0)
    return Baseline(seen, survival, stays.cumprod(0))


def curve_errors(found: Baseline, hazards: Tensor, targets: Tensor) -> Tensor:
    """Integrated squared error of the survival curves of some examples, ``(n,)``, with weights for censoring.

    Graf et al. (1999): at time t, ``S(t)**2 / G(T-)`` if the event was at ``T <= t``, ``(1 - S(t))**2 / G(t)`` if ``T >
    t``, and 0 after a censoring; integrated exactly over the follow-up of the baseline, and divided by its length. NaN
    without a follow-up.

    Args:
        found: of the client's train rows.
        hazards: ``(n,)`` log hazards.
        targets: ``(n, 2)`` times and events.
    """
    times, events = targets.T.contiguous()
    if len(found.times) < 2:
        return torch.full_like(hazards, torch.nan)
    begin, end = found.times[:-1], found.times[1:]
    before = torch.searchsorted(found.times, times) - 1  # the last step that begins before the time
    reached = torch.where(before >= 0, found.uncensored[before.clamp(min=0)], 1.0)
    errors = []
    for rows in torch.split(torch.arange(len(times)), max(1, HELD // len(begin))):
        curve = (found.survival[:-1] * hazards[rows].exp().unsqueeze(1)).exp()
        alive = (times[rows].unsqueeze(1) - begin).clamp(min=0).minimum(end - begin)
        after = (events[rows] / reached[rows]).unsqueeze(1)
        gone = torch.where(end - begin > alive, (end - begin - alive) * after, 0.0)
        errors.append(((1 - curve).square() * alive / found.uncensored[:-1] + curve.square() * gone).sum(1))
    return torch.cat(errors) / (end[-1] - begin[0])


def integrated(predictions: Predictions) -> Tensor:
    """Every example's integrated error; infinite where the model diverged."""
    if predictions.curves is None:
        raise PluresError(
            "the integrated Brier score needs the client's train rows, which are not known here: choose another metric"
        )
    return torch.where(predictions.finite, predictions.curves, torch.inf)


integrated_brier = Metric(
    "integrated_brier",
    "integrated Brier score",
    integrated,
    undefined="where the train rows have no time above 0",
    from_train=True,
)
"""Mean squared error of predicted survival curves over time, weighted for censoring (Graf et al. 1999, Statistics in
Medicine). A curve's baseline and the probabilities of being censored are those of the client's own train rows."""
