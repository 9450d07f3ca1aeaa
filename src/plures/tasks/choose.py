"""Choose the task for raw targets: the one that was asked for, or the one that their type suggests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from plures.cells import listed
from plures.errors import PluresError, PluresWarning, suggestion
from plures.tasks.binary import Binary
from plures.tasks.classification import Classification
from plures.tasks.counts import Counts
from plures.tasks.forecast import Forecast
from plures.tasks.multilabel import MultiLabel
from plures.tasks.positions import NextToken, Segmentation
from plures.tasks.quantile import Quantile
from plures.tasks.ratings import Ratings
from plures.tasks.reading import plain
from plures.tasks.regression import Regression
from plures.tasks.robust import Huber
from plures.tasks.survival import Survival
from plures.tasks.task import Array, Task, Where

KINDS: Mapping[str, type[Task]] = {
    kind.kind: kind
    for kind in (
        *(Classification, Binary, MultiLabel, Regression, Huber, Quantile, Counts, Forecast, Ratings, Survival),
        *(Segmentation, NextToken),
    )
}
"""Tasks that have a name."""

MAX_CLASSES_UNASKED = 50
"""More different integers than this are probably amounts, not classes."""

MAX_WHOLE_LABELS = 20
"""Fewer different integers of a floating-point type than this are probably classes."""


def task_of(
    targets: Array,
    task: Task | str | None,
    classes: Sequence[object] | None,
    where: Where,
    columns: tuple[str, ...] = (),
) -> tuple[Task, Tensor]:
    """The task, and the targets as a model learns them.

    Args:
        targets: raw values, one row each.
        task: an object, or the name of a kind; default: regression for floating-point targets, otherwise
            classification.
        classes: names of the classes in order. A text or boolean is the class of that name. So is an integer if all
            classes are integers; otherwise it is the position of its class.
        where: describes the place of a row.
        columns: names of the columns that several targets came from.
    """
    values = plain(targets, where)
    if isinstance(task, Task):
        if classes is not None:
            raise PluresError("classes: the task says what they are; leave classes= out, or name the task by a text")
        return _read(task.of_columns(columns) if columns else task, values, where)
    kind = task or ("regression" if values.dtype.kind == "f" else "classification")
    if kind not in KINDS:
        raise PluresError(f"task={kind!r} is unknown; {suggestion(kind, KINDS, 'use a plures.Task or one of')}")
    chosen = KINDS[kind]
    if classes is not None and not issubclass(chosen, Classification):
        raise PluresError(f'classes: a {kind} has none; leave them out, or give task="classification"')
    if classes is not None and not classes:
        raise PluresError("classes: give at least one")
    made = chosen(tuple(map(str, classes))) if classes and issubclass(chosen, Classification) else chosen()
    found, learned = (made.of_columns(columns) if columns else made).read(values, where)
    if task is None and classes is None:
        _doubted(found, values)
    return found, learned


def _read(task: Task, values: Array, where: Where) -> tuple[Task, Tensor]:
    """The targets as the task reads them; the task may be user code."""
    try:
        found: object = task.read(values, where)
    except PluresError:
        raise
    except Exception as error:
        raise PluresError(f"the task {task.kind} cannot read the targets: {type(error).__name__}: {error}") from error
    match found:
        case (Task() as read, Tensor() as targets):
            return read, targets
    raise PluresError(f"the task {task.kind}: read must return the task and a tensor of targets, (n, *target)")


def _doubted(task: Task, values: Array) -> None:
    """Warn if the type of the targets may be misleading."""
    if task.classes:
        if values.dtype.kind in "iu" and task.outputs > MAX_CLASSES_UNASKED:
            warnings.warn(
                f"targets are {task.outputs} different whole numbers ({listed(task.classes)}), and each is taken as a "
                'class: give task="classification" if they are classes, or task="regression" if they are amounts',
                PluresWarning,
                stacklevel=6,
            )
        return
    different = np.unique(values) if values.ndim == 1 else np.empty(0)
    if (
        0 < len(different) <= MAX_WHOLE_LABELS
        and len(different) < len(values) / 2
        and bool((different == np.floor(different)).all())
    ):
        warnings.warn(
            f"targets are of type {values.dtype}, so this is a regression, but they are {len(different)} whole numbers "
            f'({listed([f"{value:g}" for value in different])}): give task="classification" if they are classes, or '
            'task="regression" if they are amounts',
            PluresWarning,
            stacklevel=6,
        )
