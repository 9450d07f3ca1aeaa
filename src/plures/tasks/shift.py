"""The constant that, added to a predictor's outputs, fits a client's targets best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

STEPS = 12
FRACTIONS = (0.0, 1.0, 0.5, 0.25, 0.0625, 2.0**-8)
LEAST = 1e-9


def best_shift(cost: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimise a cost of a few numbers, by Newton's method with steps that never raise it.

    Where the cost is not finite, as with a model that diverged or without examples, the start is returned.

    Args:
        cost: ``(numbers,) -> ()``, twice differentiable almost everywhere.
        start: ``(numbers,)`` float64.
    """
    damping = LEAST * torch.eye(len(start), dtype=start.dtype, device=start.device)
    fractions = start.new_tensor(FRACTIONS)[:, None]
    at = start
    for _ in range(STEPS):
        slope, curvature = grad(cost)(at), jacrev(grad(cost))(at)
        curvature = curvature.nan_to_num(0.0, 0.0, 0.0)
        step = torch.linalg.solve_ex(curvature + damping, slope.nan_to_num(0.0, 0.0, 0.0))[0]
        tried = at - fractions * step.nan_to_num(0.0, 0.0, 0.0)
        costs = vmap(cost)(tried)
        at = tried[costs.nan_to_num(nan=torch.inf).argmin()]
    return at
