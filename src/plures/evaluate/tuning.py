"""Choose settings one after the other, on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from plures.evaluate.results import Trial

Attempt = Callable[[float, dict[str, Any]], Trial]
"""Tries a learning rate with some parameters."""


def coordinate(
    rates: Sequence[float],
    space: Mapping[str, Sequence[Any]],
    defaults: Mapping[str, Any],
    attempt: Attempt,
    *,
    higher: bool,
) -> tuple[float, dict[str, Any], list[Trial]]:
    """The learning rate with default parameters, then each parameter with what was chosen before it.

    Nothing is tried twice, and among equals the setting with the most defaults is taken. A single learning rate is
    taken without trying.

    Args:
        rates: learning rates.
        space: values of each parameter.
        defaults: parameters that hold where none are given.
        attempt: tries a setting.
        higher: whether more validation is better.

    Returns:
        The learning rate, the parameters that differ from the start, and what was tried.
    """
    trials: list[Trial] = []

    def worth(trial: Trial) -> tuple[float, int]:
        value = -math.inf if math.isnan(trial.validation) else trial.validation * (1 if higher else -1)
        return value, -sum(defaults[key] != given for key, given in trial.parameters.items())

    def best(candidates: Iterable[tuple[float, dict[str, Any]]]) -> tuple[float, dict[str, Any]]:
        tried = []
        for lr, parameters in candidates:
            full = {**defaults, **parameters}
            known = [t for t in trials if t.lr == lr and {**defaults, **t.parameters} == full]
            tried.append(known[0] if known else attempt(lr, parameters))
            trials.extend(tried[-1:] if not known else [])
        chosen = max(tried, key=worth)
        return chosen.lr, chosen.parameters

    lr, parameters = best((rate, {}) for rate in rates) if len(rates) > 1 else (rates[0], {})
    for key, values in space.items():
        lr, parameters = best([(lr, {**parameters, key: value}) for value in values])
    return lr, parameters, trials


def attempts(rates: Sequence[float], space: Mapping[str, Sequence[Any]], defaults: Mapping[str, Any]) -> int:
    """How many settings :func:`coordinate` tries."""
    count = len(rates) if len(rates) > 1 else 0
    for key, values in space.items():
        count += sum(value != defaults[key] for value in values) if count else len(values)
    return count
