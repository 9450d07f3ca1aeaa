"""The constant that, added to a predictor's outputs, fits a client's targets best."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap

STEPS = 12
FRACTIONS = (0.0, 1.0, 0.5, 0.25, 0.0625, 2.0**-8)
SCALES = tuple(sign * 2.0**power for power in range(-20, 21) for sign in (-1, 1))
SEARCHES = 48
LEAST = 1e-9


def best_shift(cost: Callable[[Tensor], Tensor], start: Tensor, curved: bool) -> Tensor:
    """Minimise a convex cost of a few numbers, by steps that never raise it.

    Newton's method does it where the cost is curved. Where it may be linear in places, as the pinball loss is
    everywhere, each step also tries moves along one number, of sizes from 1e-6 to 1e6, and takes the best. Where the
    cost is not finite, as with a model that diverged or without examples, the start is returned.

    Args:
        cost: ``(numbers,) -> ()``, twice differentiable almost everywhere.
        start: ``(numbers,)`` float64.
        curved: whether the cost is curved everywhere.
    """

    def twice(at: Tensor) -> tuple[Tensor, Tensor]:
        slope = grad(cost)(at)
        return slope, slope

    numbers = len(start)
    damping = LEAST * torch.eye(numbers, dtype=start.dtype, device=start.device)
    fractions, scales = start.new_tensor(FRACTIONS)[:, None], start.new_tensor(SCALES)[:, None]
    at = start
    for turn in range(STEPS if curved else min(STEPS * numbers, SEARCHES)):
        curvature, slope = jacrev(twice, has_aux=True)(at)
        curvature = curvature.nan_to_num(0.0, 0.0, 0.0)
        step = torch.linalg.solve_ex(curvature + damping, slope.nan_to_num(0.0, 0.0, 0.0))[0]
        tried = at - fractions * step.nan_to_num(0.0, 0.0, 0.0)
        if not curved:
            along = F.one_hot(torch.tensor(turn % numbers, device=start.device), numbers).to(start)
            tried = torch.cat([tried, at + scales * along])
        costs = vmap(cost)(tried)
        best = costs.nan_to_num(nan=torch.inf).argmin()
        at = tried[best]
        if curved and stays(best):
            break
    return at


def stays(best: Tensor) -> bool:
    """Whether the best of several steps is the first, which is none: then none follows. Stacked clients never tell."""
    try:
        return bool(best == 0)
    except RuntimeError:  # under vmap, no client's numbers can be read
        return False


def shifted_softmax(outputs: Tensor, labels: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """What a shift adds to ``sum_i w_i (-log softmax(z_i)[y_i])``, as a function ``(labels,) -> ()`` of the shift.

    The loss depends on the shift through the outputs' probabilities and the labels' frequencies alone, which are
    computed once: ``sum_i w_i log(sum_k p_ik exp(b_k)) - sum_k f_k b_k``. So all second derivatives cost a few matrix
    products, whatever the number of labels.

    Args:
        outputs: ``(n, labels)``.
        labels: ``(n,)``, 0 to ``labels - 1``.
        weight: ``(n,)`` how much each counts.
    """
    chances, total = outputs.softmax(-1), weight.sum()
    frequencies = weight @ F.one_hot(labels, outputs.shape[-1]).to(weight)
    least = torch.finfo(outputs.dtype).tiny

    def cost(shift: Tensor) -> Tensor:
        top = shift.detach().amax()
        return weight @ (chances @ (shift - top).exp()).clamp(min=least).log() + total * top - frequencies @ shift

    return cost
