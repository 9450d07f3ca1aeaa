"""Tuning: try a setting in a short run, and choose settings one after the other on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from plures.errors import PluresError, suggestion
from plures.evaluate.callback import Callback
from plures.evaluate.fit import Fit, fit
from plures.evaluate.results import Point, Trial
from plures.evaluate.spec import RunSpec
from plures.methods import Entry
from plures.run import Run
from plures.signature import shown

Spaces = Mapping[str, Mapping[str, Sequence[Any]]]
"""Values to try, by method and parameter; ``lr`` is the learning rate."""
Attempt = Callable[[float, dict[str, Any]], Trial]
"""Tries a learning rate with some parameters."""


@dataclass(frozen=True)
class Search:
    """What tuning tries for a method.

    Attributes:
        rates: learning rates.
        space: values of each parameter.
    """

    rates: tuple[float, ...]
    space: Mapping[str, Sequence[Any]]


def searches(entries: Mapping[str, Entry], rates: Sequence[float], spaces: Spaces) -> dict[str, Search]:
    """What tuning tries for each method.

    Args:
        entries: the methods.
        rates: learning rates of all methods.
        spaces: values that replace the catalogue's, of some methods.

    Raises:
        PluresError: if a method or a parameter is unknown, not tuned, or has no value to try.
    """
    for name, space in spaces.items():
        if name not in entries:
            raise PluresError(f"space: no method {name!r} is compared; {suggestion(name, entries)}")
        entry = entries[name]
        if not tuned(entry):
            raise PluresError(f"space: {untuned(entry, name)}; leave it out")
        for key, values in space.items():
            if key in entry.fixed:
                raise PluresError(f"space: {key} of {name} is fixed; leave it out")
            if key != "lr" and key not in entry.defaults:
                known = suggestion(key, ["lr", *entry.defaults], "its parameters are")
                raise PluresError(f"space: {name} has no parameter {key!r}; {known}")
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise PluresError(f"space: {name}.{key}={shown(values)}; give a list of values to try")
    found = dict[str, Search]()
    for name, entry in entries.items():
        own: Mapping[str, Sequence[Any]] = spaces.get(name, entry.space)
        parameters = {key: values for key, values in own.items() if key != "lr"}
        found[name] = Search(checked_rates(own.get("lr", rates)), parameters)
    return found


def checked_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Learning rates.

    Raises:
        PluresError: if one is not a positive number.
    """
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
            raise PluresError(f"learning_rates: {rate} cannot train; give finite numbers above 0")
    return tuple(map(float, rates))


def tuned(entry: Entry) -> bool:
    """Whether a method has settings of its own to choose."""
    return entry.rounds is None and not entry.after


def untuned(entry: Entry, name: str) -> str:
    """Why a method has no settings of its own to choose, in words."""
    why = f"it has the learning rate of {entry.after}" if entry.after else "there is nothing to choose"
    return f"{name} is not tuned, {why}"


def try_out(
    run: Run,
    spec: RunSpec,
    name: str,
    *,
    every: int | None = None,
    behind: Callable[[Point], bool] | None = None,
    progress: Callable[[Point], None] | None = None,
    callbacks: Sequence[Callback] = (),
    honest: Sequence[int] | None = None,
) -> Fit[Run]:
    """Try a setting in a short run, which reads only validation data: a trial of a comparison or of a study.

    Args:
        run: a new run with the setting.
        spec: the setting.
        name: name of the run.
        every: rounds between readings; default: :func:`readings`.
        behind: called at every reading before the last round; the trial ends if it returns ``True``.
        progress: called after each round.
        callbacks: notified of the run and of its end.
        honest: positions of the clients that may be scored; default: those that do not attack.
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
        honest=honest,
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
    """Choose the learning rate with default parameters, then each parameter, keeping earlier choices.

    No setting is tried twice, and on ties the setting with the most defaults wins. A single learning rate is used
    without trying it.

    Args:
        rates: learning rates.
        space: values of each parameter.
        defaults: default values of all parameters.
        attempt: tries a setting.
        higher: whether a higher validation score is better.

    Returns:
        The learning rate, the chosen parameters, and all trials.
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
    """Number of settings that :func:`coordinate` tries."""
    count = len(rates) if len(rates) > 1 else 0
    for key, values in space.items():
        count += sum(value != defaults[key] for value in values) if count else len(values)
    return count
