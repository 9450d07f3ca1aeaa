"""Names of outputs and their weights in losses: checked once, and kept as one name and one number for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from plures.errors import PluresError, suggestion
from plures.tasks.reading import distinct
from plures.tasks.task import Task

Weights = Mapping[str, float] | Sequence[float] | None
"""A weight for each class or label, in their order, or by name (those that are not named have weight 1)."""


def settle(task: Task, names: str, word: str, weights: str) -> None:
    """Check the names of a task's outputs and their weights, and keep both in the task.

    Args:
        task: the task that is being made.
        names: its field of names; weights are settled when there are names, from the data at the latest.
        word: what one of them is called in messages.
        weights: its field of weights.
    """
    found = distinct(getattr(task, names), names, word)
    object.__setattr__(task, names, found)
    if found:
        object.__setattr__(task, weights, weighed(getattr(task, weights), found, weights))


def bounded(task: Task, **most: float) -> None:
    """Refuse an exponent or a share of a loss that cannot be: not from 0 to below the largest, or beside ``loss=``.

    Args:
        task: the task that is being made.
        most: field -> its largest value, which is excluded.
    """
    for name, bound in most.items():
        value = getattr(task, name)
        if not 0 <= value < bound:
            raise PluresError(f"{task.kind}: {name}={value}; give a number from 0 to below {bound:g}")
        if value:
            replaced(task, name)


def replaced(task: Task, option: str) -> None:
    """Refuse an option of the task's own loss beside ``loss=``, which replaces it."""
    value = getattr(task, option)
    if value is not None and getattr(task, "loss", None) is not None:
        raise PluresError(
            f"{task.kind}: {option}={value}, but loss= replaces the loss that it belongs to: give one of them"
        )


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
