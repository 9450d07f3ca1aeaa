"""Weights of losses: checked once, and kept as one number for each class or label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from plures.errors import PluresError, suggestion

Weights = Mapping[str, float] | Sequence[float] | None
"""A weight for each class or label, in their order, or by name (those that are not named have weight 1)."""


def weighed(weights: Weights, names: tuple[str, ...], what: str) -> tuple[float, ...] | None:
    """Weights in the order of the names; ``None`` where all are 1, which is no weighting at all.

    Raises:
        PluresError: for an unknown name, a wrong number of weights, or one that is negative or not finite.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        given = {str(name): weight for name, weight in weights.items()}
        for name in given:
            if name not in names:
                raise PluresError(f"{what}: no {name!r}; {suggestion(name, names, 'names are')}")
        weights = [given.get(name, 1.0) for name in names]
    if isinstance(weights, str) or not hasattr(weights, "__len__"):
        raise PluresError(f"{what}={weights!r}: give a number for each of {', '.join(names)}, or a mapping from names")
    if len(weights) != len(names):
        raise PluresError(f"{what}: {len(weights)} weights for {len(names)}; give one for each of {', '.join(names)}")
    found: list[float] = []
    for name, weight in zip(names, weights, strict=True):
        try:
            found.append(float(weight))
        except (TypeError, ValueError):
            raise PluresError(f"{what}: {weight!r} for {name!r} is not a number") from None
        if not (math.isfinite(found[-1]) and found[-1] >= 0):
            raise PluresError(f"{what}: {found[-1]:g} for {name!r}; give finite numbers of at least 0")
    if not any(found):
        raise PluresError(f"{what}: all are 0, so nothing would be learned; give one above 0")
    return None if all(weight == 1 for weight in found) else tuple(found)
