"""A case's comparisons, made by :func:`~plures.evaluate.compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from plures.cases.case import Case, Part
from plures.evaluate import Comparison, ComparisonProgress, compare
from plures.federation import locate
from plures.run import Execution

QUICK: Mapping[str, Any] = MappingProxyType(
    {"rounds": 1, "steps": 2, "seeds": 1, "every": 1, "tune_rounds": 0, "learning_rates": (0.01,), "space": {}}
)
"""The smallest budget, to see whether everything works."""
Listener = Callable[[int, Part, ComparisonProgress], None]


def conduct(
    case: Case,
    out: Path | None = None,
    *,
    quick: bool = False,
    execution: Execution | None = None,
    listener: Listener | None = None,
) -> list[Comparison]:
    """Make all comparisons of a case.

    Args:
        case: the case.
        out: folder for the results; each part has a folder in it, from which an interrupted case resumes.
        quick: train for one round of two steps, with one seed and without tuning, only to see whether it works.
        execution: how to use the machine.
        listener: called with a part's position, the part, and its progress.

    Raises:
        PluresError: before anything is trained if the data are not there, saying how to get them.
    """
    for name in (*(part.data for part in case.parts), *(course.data for course in case.courses)):
        locate(name)

    def made(place: int, part: Part) -> Comparison:
        model = {} if part.start is None else {"model": part.start(quick)}
        if model and listener is not None:
            listener(place, part, ComparisonProgress("the network", "made before", None, 0, 0, 1, ended=True))
        return compare(
            part.data,
            [*part.shared, *part.personal],
            **{**part.options, **(QUICK if quick else {}), **model},
            out=None if out is None else out / part.name,
            execution=execution,
            listener=None if listener is None else lambda stage: listener(place, part, stage),
        )

    return [made(place, part) for place, part in enumerate(case.parts)]
