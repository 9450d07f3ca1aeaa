"""Arithmetic on leaves. Every function returns new tensors and leaves its arguments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.models import Leaves


def squared_distance(a: Leaves, b: Leaves) -> Tensor:
    """Sum of squared differences over all floating-point leaves of ``a``, a scalar."""
    return torch.stack([(a[k] - b[k]).square().sum() for k in a if a[k].is_floating_point()]).sum()


def dot(a: Leaves, b: Leaves) -> Tensor:
    """Inner product over the floating-point leaves of ``b``, a scalar."""
    return torch.stack([(a[k] * b[k]).sum() for k in b if b[k].is_floating_point()]).sum()


def axpy(x: Leaves, scale: Tensor | float, d: Leaves) -> Leaves:
    """``x + scale * d`` on floating-point leaves that ``d`` has; other leaves of ``x`` as they are."""
    return {k: t + scale * d[k] if k in d and t.is_floating_point() else t for k, t in x.items()}


def interpolate(a: Leaves, b: Leaves, weight: Tensor | float) -> Leaves:
    """``weight * a + (1 - weight) * b`` on floating-point leaves; others from ``a``."""
    return {k: weight * t + (1 - weight) * b[k] if t.is_floating_point() else t for k, t in a.items()}


def detach(x: Leaves) -> Leaves:
    """The same values without their history."""
    return {k: t.detach() for k, t in x.items()}


def zeros_like(x: Leaves) -> Leaves:
    """Zeros of the same shapes, for floating-point leaves only."""
    return {k: torch.zeros_like(t) for k, t in x.items() if t.is_floating_point()}
