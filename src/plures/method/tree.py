"""Arithmetic on leaves. Every function returns new tensors and leaves its arguments alone.

Arithmetic is for parameters. Buffers, such as running statistics, are updated by forward passes, and frozen leaves
never change: no distance, product or step includes them if an argument knows which they are, as a client's slots do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from plures.models import Leaves, Marked


def fixed(*of: Leaves) -> frozenset[str]:
    """Paths of the buffers and frozen leaves among some leaves, as far as known."""
    return frozenset().union(*(x.fixed for x in of if isinstance(x, Marked)))


def parameters(x: Leaves) -> Leaves:
    """The trainable leaves: floating-point, neither buffers nor frozen."""
    held = fixed(x)
    return {k: t for k, t in x.items() if t.is_floating_point() and k not in held}


def like(values: Leaves, *of: Leaves) -> Leaves:
    """Leaves that keep the fixed paths known to those they are made from."""
    return Marked(values, held) if (held := fixed(*of)) else values


def _moved(a: Leaves, b: Leaves, names: Iterable[str]) -> list[str]:
    held = fixed(a, b)
    return [k for k in names if k not in held]


def squared_distance(a: Leaves, b: Leaves) -> Tensor:
    """Sum of squared differences over all parameters of ``a``, a scalar."""
    return _total([(a[k] - b[k]).square().sum() for k in _moved(a, b, a) if a[k].is_floating_point()], a)


def dot(a: Leaves, b: Leaves) -> Tensor:
    """Inner product over the parameters of ``b``, a scalar."""
    return _total([(a[k] * b[k]).sum() for k in _moved(a, b, b) if b[k].is_floating_point()], b)


def _total(terms: list[Tensor], like: Leaves) -> Tensor:
    """Their sum; 0 for none."""
    return torch.stack(terms).sum() if terms else next(t for t in like.values() if t.is_floating_point()).sum() * 0


def axpy(x: Leaves, scale: Tensor | float, d: Leaves) -> Leaves:
    """``x + scale * d`` on parameters that ``d`` has; other leaves of ``x``, and its buffers, unchanged."""
    held = fixed(x, d)
    made = {k: t + scale * d[k] if k in d and k not in held and t.is_floating_point() else t for k, t in x.items()}
    return like(made, x, d)


def interpolate(a: Leaves, b: Leaves, weight: Tensor | float) -> Leaves:
    """``weight * a + (1 - weight) * b`` on parameters.

    Other leaves and buffers are those of ``a``, whose running statistics the mixture uses; if ``weight`` is 0, they
    are those of ``b``, since the mixture then equals ``b``.
    """
    held, mixed = fixed(a, b), {}
    for k, t in a.items():
        if t.is_floating_point() and k not in held:
            mixed[k] = weight * t + (1 - weight) * b[k]
        else:
            mixed[k] = torch.where(weight != 0, t, b[k]) if isinstance(weight, Tensor) else t if weight else b[k]
    return like(mixed, a, b)


def detach(x: Leaves) -> Leaves:
    """The same values, detached from the autograd graph."""
    return like({k: t.detach() for k, t in x.items()}, x)


def zeros_like(x: Leaves) -> Leaves:
    """Zeros of the same shapes, for parameters only."""
    return {k: torch.zeros_like(t) for k, t in parameters(x).items()}
