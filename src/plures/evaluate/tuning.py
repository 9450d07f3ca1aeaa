"""Try a setting in a short run; choose settings one after the other, on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from plures.evaluate.callback import Callback
from plures.evaluate.fit import Fit, fit
from plures.evaluate.results import Point, Trial
from plures.evaluate.spec import RunSpec
from plures.run import Run

Attempt = Callable[[float, dict[str, Any]], Trial]
"""Tries a learning rate with some parameters."""


def try_out(
    run: Run,
    spec: RunSpec,
    name: str,
    *,
    every: int | None = None,
    behind: Callable[[Point], bool] | None = None,
    progress: Callable[[Point], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fit[Run]:
    """Try a setting in a short run, which reads validation data alone: a trial of a comparison or of a study.

    Args:
        run: a fresh run of the setting.
        spec: the setting.
        name: what the run is called.
        every: rounds between readings; default: :func:`readings`.
        behind: asked at every reading before the last round whether the trial has fallen behind and ends there.
        progress: called after each round.
        callbacks: notified of the run and of its end.
    """
    fitted = fit(
        run,
        name,
        every=every or readings(spec.rounds),
        behind=behind,
        progress=progress,
        callbacks=callbacks,
        stage="tuning",
        settings=spec.model_dump(),
        evaluate_clients=spec.evaluate_clients,
    )
    fitted.callbacks.on_end(None)
    return fitted


def readings(rounds: int, most: int = 4) -> int:
    """Rounds between readings of validation data, for about ``most`` readings."""
    return max(1, rounds // most)


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
