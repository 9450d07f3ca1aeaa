"""Two methods in one: each of the six parts comes from the method that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import fields, replace
from typing import Any, TypeVar

from plures.errors import PluresError
from plures.method.combine import Combine
from plures.method.layout import Layout, LayoutKey, Selector
from plures.method.predict import Predict
from plures.method.schedule import Objective, Phase, Schedule
from plures.method.shares.share import Known, Share, Shared

Part = TypeVar("Part")


def _refusal(what: str) -> PluresError:
    return PluresError(f"these methods do not compose: both change {what}; write the Method that you mean")


def _changed(what: str, one: Any, two: Any, plain: Any = None) -> Any:
    """The value from the one method that changed it."""
    if one in (plain, two):
        return two
    if two == plain:
        return one
    raise _refusal(what)


def only(what: str, one: Any, two: Any) -> Any:
    """The value of the one method that has any."""
    return _changed(what, one, two)


def entries(what: str, one: Mapping[Any, Part], two: Mapping[Any, Part], plain: Any = None) -> dict[Any, Part]:
    """The entries of both, each changed by one of them."""
    both = [key for key in one if key in two]
    return {**one, **two} | {key: _changed(f"{what} {_name(key)!r}", one[key], two[key], plain) for key in both}


def _name(key: LayoutKey) -> str:
    return key if isinstance(key, str) else key.name


def layouts(one: Layout, two: Layout, common: Set[str]) -> dict[LayoutKey, Share]:
    """The entries of both.

    Args:
        one: layout of the first method.
        two: layout of the second.
        common: slots that both methods have.
    """
    known: dict[LayoutKey, Share] = {}
    for slot in sorted(common - {"model"}):
        a, b = one.get(slot), two.get(slot)
        if not (isinstance(a, Known) and isinstance(b, Known)):
            raise _refusal(f"the slot {slot!r}")
        known[slot] = Known(*dict.fromkeys(a.facts + b.facts))
    layout = entries("the share of", {**one, **known}, {**two, **known}, Shared())
    return {key: layout[key] for key in sorted(layout, key=lambda key: not isinstance(key, Selector))}


def schedules(one: Schedule, two: Schedule) -> Schedule:
    """The combined schedule of both."""
    if one == two:
        return one
    for outer, inner in ((one, two), (two, one)):
        if Phase() in outer:
            at = outer.index(Phase())
            return outer[:at] + inner + outer[at + 1 :]
    for term, work in ((one, two), (two, one)):
        slot, objective = _term(term)
        of_slot = [item for item in work if isinstance(item, Phase) and item.slot == slot]
        if of_slot and all(phase.objective is None for phase in of_slot):
            return tuple(replace(item, objective=objective) if item in of_slot else item for item in work)
    raise _refusal("the schedule")


def _term(schedule: Schedule) -> tuple[str | None, Objective | None]:
    """The slot and the objective of a schedule that changes nothing else."""
    for only in schedule[:1]:
        if isinstance(only, Phase) and schedule == (Phase(train=only.slot, objective=only.objective),):
            return only.slot, only.objective
    return None, None


def combines(
    one: Mapping[str, Combine], two: Mapping[str, Combine], first: Combine, second: Combine
) -> Combine | dict[str, Combine]:
    """How the slots of both are combined.

    Args:
        one: rules of the first method's slots.
        two: rules of the second method's slots.
        first: rule of the first method for slots that it lacks.
        second: rule of the second method for slots that it lacks.
    """
    rules = {
        slot: _rule(f"how {slot!r} is combined:", one.get(slot, first), two.get(slot, second))
        for slot in sorted({*one, *two})
    }
    some, *others = rules.values()
    return some if all(rule == some for rule in others) else rules


def _rule(what: str, one: Combine, two: Combine) -> Combine:
    """One rule of both; a reducer that prepares the uploads for the other's takes it in."""
    if one.reduce is not None and two.reduce is not None:
        both = one.reduce.together(two.reduce) or two.reduce.together(one.reduce)
        if both is not None:
            one, two = replace(one, reduce=both), replace(two, reduce=both)
    return _fields(what, one, two)


def _fields(what: str, one: Part, two: Part) -> Part:
    """The fields that one of them changed."""
    plain = type(one)()
    names = [field.name for field in fields(one)]  # type: ignore[arg-type]
    made = {name: _changed(f"{what} {name}", *(getattr(p, name) for p in (one, two, plain))) for name in names}
    return type(one)(**made)


def predictions(one: Predict, two: Predict) -> Predict:
    """The predictor, and the work before predicting."""
    for a, b in ((one, two), (two, one)):
        if a.model != "model" and (b.outputs is not None or "model" in _adapted(b.adapt)):
            raise _refusal("what predicts")
    common = sorted(_adapted(one.adapt) & _adapted(two.adapt))
    if common and one.adapt != two.adapt:
        raise _refusal(f"how {common[0]!r} is adapted before predicting")
    together: dict[str, Any] = {
        "adapt": one.adapt if one.adapt == two.adapt else one.adapt + two.adapt,
        "visits": max(one.visits, two.visits),
        "reads": tuple(dict.fromkeys(one.reads + two.reads)),
        "calibrate": one.calibrate + two.calibrate,
    }
    return _fields("predict:", replace(one, **together), replace(two, **together))


def _adapted(schedule: Schedule) -> set[str]:
    """Slots that a schedule changes."""
    written: set[str] = set()
    for item in schedule:
        if isinstance(item, Phase):
            written |= {key if isinstance(key, str) else key.slot for key in item.targets} | set(item.keeps)
        else:
            written |= set(item.writes)
    return written
