"""Search a space of settings: with Optuna, or one setting after the other.

A trial is a pure function of those before it: each has its own sampler seed, and the Optuna study is rebuilt from the
database. So a search that was killed resumes as if it had never stopped.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from plures.errors import PluresError
from plures.evaluate.results import Trial
from plures.evaluate.tuning import attempts, coordinate
from plures.run.randomness import name_key
from plures.study.document import Range, Space, TuningPart
from plures.study.plan import Candidate
from plures.study.store import State, Tried

if TYPE_CHECKING:
    import optuna

Behind = Callable[[int, float], bool]
"""Called with a round and its validation; returns whether to stop."""
Attempt = Callable[[dict[str, Any], Behind], tuple[dict[int, float], bool, float]]
"""Runs a setting; returns validation by round, whether it was stopped, and seconds."""
Keep = Callable[[Tried], None]


def resolved(wanted: str) -> str:
    """``optuna``, ``random`` or ``grid``: the search that a document's ``search`` selects here."""
    present = importlib.util.find_spec("optuna") is not None
    if wanted == "auto":
        return "optuna" if present else "grid"
    if wanted != "grid" and not present:
        raise PluresError(
            f"tuning.search = {wanted!r} needs the package optuna: pip install 'plures[tune]', or set search = 'grid'"
        )
    return wanted


def points(values: Sequence[Any] | Range) -> list[Any]:
    """The values of a list; the bounds of a range and the middle between them."""
    if not isinstance(values, Range):
        return list(values)
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    three = [values.low, round(middle) if values.whole else middle, values.high]
    return [value for place, value in enumerate(three) if value not in three[:place]]


def start(candidate: Candidate) -> dict[str, Any]:
    """Start of the search: the method's defaults, if the space has them, and the middle learning rate."""
    found = {}
    for key, values in candidate.space.items():
        tried, default = points(values), candidate.entry.defaults.get(key)
        inside = default in tried
        if isinstance(values, Range):
            inside = False
            if isinstance(default, int | float) and values.low <= default <= values.high:
                inside, default = True, round(default) if values.whole else default
        middle = tried[len(tried) // 2] if key == "lr" or isinstance(values, Range) else tried[0]
        found[key] = default if inside and key != "lr" else middle
    return found


def every_setting(candidate: Candidate, most: int) -> list[dict[str, Any]] | None:
    """All settings, if there are no more than ``most``; the start is the first of them."""
    spaces = candidate.space
    if any(isinstance(values, Range) for values in spaces.values()):
        return None
    if math.prod(len(points(values)) for values in spaces.values()) > most:
        return None
    settings = [dict(zip(spaces, values, strict=True)) for values in product(*map(points, spaces.values()))]
    first = start(candidate)
    return sorted(settings, key=lambda setting: setting != first)


def planned(candidate: Candidate, tuning: TuningPart, search: str) -> int:
    """Most trials of a search."""
    if not candidate.space or not tuning.trials:
        return 0
    if search == "grid":
        return attempts(*_grid(candidate))
    listed = every_setting(candidate, tuning.trials)
    return tuning.trials if listed is None else len(listed)


def best(trials: Sequence[Tried], *, higher: bool) -> Tried:
    """The best trial that was not stopped; ties go to the earliest."""
    whole = [tried for tried in trials if tried.state == "finished"]
    return max(whole, key=lambda tried: (_worth(tried.validation, higher), -tried.number))


def _worth(value: float, higher: bool) -> float:
    return -math.inf if math.isnan(value) else value if higher else -value


def run_search(
    candidate: Candidate,
    tuning: TuningPart,
    search: str,
    history: list[Tried],
    attempt: Attempt,
    keep: Keep,
    *,
    higher: bool,
    seed: str,
) -> dict[str, Any]:
    """Search, resuming from earlier trials; returns the chosen setting.

    Args:
        candidate: the method and its space.
        tuning: the tuning budget.
        search: ``optuna``, ``random`` or ``grid``.
        history: earlier trials; new ones are appended.
        attempt: runs a setting.
        keep: writes a new trial.
        higher: whether more validation is better.
        seed: name of the search; seeds its randomness.
    """
    if search == "grid":
        return _by_grid(candidate, history, attempt, keep, higher)
    total, listed = planned(candidate, tuning, search), every_setting(candidate, tuning.trials)
    while len(history) < total:
        number = len(history)
        study = optuna_study(candidate, tuning, search, history, higher=higher, seed=f"{seed} {number}", total=total)
        if listed is not None or number == 0:
            study.enqueue_trial(_params(candidate.space, (listed or [start(candidate)])[number]))
        trial = study.ask(distributions(candidate.space))
        setting = _meant(candidate.space, trial.params)
        if (fresh := _untried(candidate.space, history, f"{seed} {number}")) and setting not in fresh:
            study.enqueue_trial(_params(candidate.space, fresh[0]))
            trial, setting = study.ask(distributions(candidate.space)), fresh[0]
        known = [tried for tried in history if tried.setting == setting]
        if known:
            tried = Tried(number, "repeated", setting, known[0].curve, known[0].validation, 0.0, {})
        else:

            def behind(step: int, value: float, trial: optuna.Trial = trial) -> bool:
                trial.report(value, step)
                return trial.should_prune()

            curve, stopped, seconds = attempt(setting, behind)
            notes = study.trials[-1].system_attrs
            state: State = "pruned" if stopped else "finished"
            tried = Tried(number, state, setting, curve, _best(curve, higher), seconds, notes)
        keep(tried)
        history.append(tried)
    return best(history, higher=higher).setting


def _untried(space: Space, history: Sequence[Tried], seed: str) -> list[dict[str, Any]]:
    """Untried settings of a space of lists, in an order that depends on the seed; none for other spaces.

    Optuna may repeat a setting; in a small space that would waste most of the trials.
    """
    if any(isinstance(values, Range) for values in space.values()):
        return []
    settings = [dict(zip(space, values, strict=True)) for values in product(*map(points, space.values()))]
    done = [tried.setting for tried in history]
    return sorted((s for s in settings if s not in done), key=lambda setting: name_key(f"{seed} {setting}"))


def _best(curve: Mapping[int, float], higher: bool) -> float:
    return max(curve.values(), key=lambda value: _worth(value, higher), default=math.nan)


def _grid(candidate: Candidate) -> tuple[list[float], dict[str, list[Any]], dict[str, Any]]:
    """Learning rates, space and defaults of the grid search."""
    space = {key: points(values) for key, values in candidate.space.items() if key != "lr"}
    rates = points(candidate.space["lr"]) if candidate.lr is None else [candidate.lr]
    return rates, space, {**candidate.entry.defaults, **candidate.part.parameters}


def _by_grid(candidate: Candidate, history: list[Tried], attempt: Attempt, keep: Keep, higher: bool) -> dict[str, Any]:
    def one(lr: float, parameters: dict[str, Any]) -> Trial:
        setting = {**({"lr": lr} if "lr" in candidate.space else {}), **parameters}
        known = [tried for tried in history if tried.setting == setting]
        if not known:
            curve, _, seconds = attempt(setting, lambda step, value: False)
            known = [Tried(len(history), "finished", setting, curve, _best(curve, higher), seconds, {})]
            keep(known[0])
            history.extend(known)
        return Trial(lr=lr, parameters=parameters, validation=known[0].validation)

    lr, parameters, _ = coordinate(*_grid(candidate), one, higher=higher)
    return {**({"lr": lr} if "lr" in candidate.space else {}), **parameters}


# --- Optuna -------------------------------------------------------------------------------------------------------


def _name(value: Any) -> Any:
    """A value in a form that Optuna's storages accept."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _params(space: Space, setting: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(space[key], Range) else _name(value) for key, value in setting.items()}


def _meant(space: Space, given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, values in space.items():
        found[key] = given[key] if isinstance(values, Range) else {_name(value): value for value in values}[given[key]]
    return found


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """A space as Optuna distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, values in space.items():
        if not isinstance(values, Range):
            found[key] = CategoricalDistribution([_name(value) for value in values])
        elif values.whole:
            found[key] = IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            found[key] = FloatDistribution(float(values.low), float(values.high), log=values.log)
    return found


def optuna_study(
    candidate: Candidate,
    tuning: TuningPart,
    search: str,
    history: Sequence[Tried],
    *,
    higher: bool,
    seed: str = "",
    total: int = 0,
) -> optuna.Study:
    """The trials of a search as an in-memory Optuna study, also for its plots and dashboard."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number, patience = name_key(seed) % 2**32, max(2, total // 4)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "optuna": lambda: optuna.samplers.TPESampler(n_startup_trials=max(3, total // 3), seed=number),
        "random": lambda: optuna.samplers.RandomSampler(seed=number),
    }
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=patience),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(reduction_factor=2),
        "none": optuna.pruners.NopPruner,
    }
    study = optuna.create_study(
        direction="maximize" if higher else "minimize", sampler=samplers[search](), pruner=pruners[tuning.pruning]()
    )
    states = {"finished": optuna.trial.TrialState.COMPLETE, "repeated": optuna.trial.TrialState.COMPLETE}
    known = distributions(candidate.space)
    for tried in history:
        value = _worth(tried.validation, higher) * (1 if higher else -1)
        study.add_trial(
            optuna.trial.create_trial(
                state=states.get(tried.state, optuna.trial.TrialState.PRUNED),
                value=value,
                params=_params(candidate.space, tried.setting),
                distributions={key: known[key] for key in tried.setting},
                intermediate_values=dict(tried.curve),
                system_attrs=tried.notes,
            )
        )
    return study
