"""What is predicted: classes are the values that occur, named by themselves, or real numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.cells import absent, alike, listed, number
from plures.errors import PluresError, PluresWarning, closest
from plures.federation.federation import Task
from plures.names import in_order

Array = NDArray[Any]
Kind = Literal["classification", "regression"]
MANY = 50
"""More whole numbers than that are probably amounts, not classes."""

FEW = 20
"""Fewer whole values of a floating-point type than that are probably classes."""


def task_of(
    targets: Array, kind: Kind | None, classes: Sequence[object] | None, where: Callable[[int], str]
) -> tuple[Task, Tensor]:
    """The task, and the targets as a model learns them: class numbers ``(n,)`` int64 or ``(n, outputs)`` float32.

    Args:
        targets: as they came, one row each.
        kind: of the task; from their type if not given: floating point is regression, all else classification.
        classes: names of the classes in order. A text or boolean is the class of that name. A whole number is so
            too if all classes are whole numbers, else it is the position of its class.
        where: the place of a row in words.
    """
    values = _plain(targets, where)
    if values.dtype.kind not in "fiubU":
        raise PluresError(
            f"targets of type {values.dtype} are neither classes nor numbers; make numbers or texts of them"
        )
    guessed = kind is None
    if kind is None:
        kind = "regression" if values.dtype.kind == "f" else "classification"
    if kind == "regression":
        if classes is not None:
            raise PluresError('classes: a regression has none; leave them out, or say task="classification"')
        return _regression(values, guessed, where)
    if values.ndim != 1:
        raise PluresError(f"class labels must be one per row, got shape {values.shape}")
    if values.dtype.kind == "f":
        refuse(torch.from_numpy(values != np.floor(values)), "a label that is no whole number", where)
        values = values.astype(np.int64)
    if classes is None:
        names, codes = _occurring(values)
        if guessed and values.dtype.kind in "iu" and len(names) > MANY:
            warnings.warn(
                f"targets are {len(names)} different whole numbers ({listed(names)}), and each counts as a class: say "
                'task="classification" if they are, or task="regression" if they are amounts',
                PluresWarning,
                stacklevel=5,
            )
        return Task("classification", names, len(names)), codes
    names = tuple(str(name) for name in classes)
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice or not names:
        raise PluresError(f"classes: {repr(twice[0]) + ' stands there twice' if twice else 'give at least one'}")
    return Task("classification", names, len(names)), _coded(values, names, where)


def refuse(bad: Tensor, what: str, where: Callable[[int], str]) -> None:
    """Raise PluresError at the first row that is bad."""
    if bool(bad.any()):
        raise PluresError(f"{where(int(bad.int().argmax()))}: {what}")


def _plain(targets: Array, where: Callable[[int], str]) -> Array:
    """Targets of one type: booleans, integers, floating point or texts; none is missing."""
    if targets.dtype.kind == "S":
        targets = targets.astype(str)
    if targets.dtype.kind not in "OU":
        return targets
    cells = targets.ravel().tolist()
    gaps = absent(cells)
    if gaps.any():
        raise PluresError(
            f"{where(int(gaps.argmax()) // max(math.prod(targets.shape[1:]), 1))}: no target; leave the row out"
        )
    kinds = {type(cell) for cell in cells}
    if kinds <= {bool} or kinds <= {int} or kinds <= {int, float}:
        return np.array(cells).reshape(targets.shape)
    odd = [cell for cell in cells if not isinstance(cell, str | int | float)]
    if odd:
        raise PluresError(f"targets of type {type(odd[0]).__name__}; make numbers or texts of them")
    text = [str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell) for cell in cells]
    return np.array(text).reshape(targets.shape)


def _regression(values: Array, guessed: bool, where: Callable[[int], str]) -> tuple[Task, Tensor]:
    if values.dtype.kind not in "fiub":
        raise PluresError(f"targets of type {values.dtype} cannot be regressed on; give numbers")
    targets = torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))
    refuse(~torch.isfinite(targets).all(1), "a NaN or infinite target; correct it or leave the row out", where)
    different = np.unique(values) if guessed and values.ndim == 1 else np.empty(0)
    if (
        0 < len(different) <= FEW
        and len(different) < len(values) / 2
        and bool((different == np.floor(different)).all())
    ):
        warnings.warn(
            f"targets are of type {values.dtype}, so this is a regression, but they are {len(different)} whole numbers "
            f'({listed([f"{value:g}" for value in different])}): say task="classification" if they are classes, or '
            'task="regression" if they are amounts',
            PluresWarning,
            stacklevel=5,
        )
    return Task("regression", outputs=targets.shape[1]), targets


def _occurring(values: Array) -> tuple[tuple[str, ...], Tensor]:
    """The different values in their order as names, and the place of each row's value."""
    different, codes = np.unique(values, return_inverse=True)
    found = [str(value) for value in different.tolist()]
    names = tuple(found)
    if values.dtype.kind == "U":
        numeric = {name: number(name) for name in found}
        known = {name: value for name, value in numeric.items() if value is not None}
        names = (
            tuple(sorted(found, key=lambda name: (known[name], name))) if len(known) == len(found) else in_order(found)
        )
        pairs = alike(names)
        if pairs:
            warnings.warn(
                f"classes {pairs[0][0]!r} and {pairs[0][1]!r} differ by case, blanks or notation alone: are they one?",
                PluresWarning,
                stacklevel=6,
            )
    place = np.array([names.index(name) for name in found], dtype=np.int64)
    return names, torch.from_numpy(place[codes.reshape(-1)])


def _coded(values: Array, names: tuple[str, ...], where: Callable[[int], str]) -> Tensor:
    """Place of each label among the classes that were given."""
    by_number = all(name.removeprefix("-").isdecimal() for name in names)
    as_text = values.dtype.kind == "U" or (values.dtype.kind == "b" and {"False", "True"} >= set(names))
    if not as_text and not by_number:
        labels = values.astype(np.int64)
        outside = (labels < 0) | (labels >= len(names))
        if outside.any():
            at = int(outside.argmax())
            raise PluresError(
                f"{where(at)}: label {labels[at]} is outside 0..{len(names) - 1}; correct the labels or the list of "
                "classes"
            )
        return torch.from_numpy(labels)
    different, codes = np.unique(values if as_text else values.astype(np.int64), return_inverse=True)
    places = {name if as_text else str(int(name)): place for place, name in enumerate(names)}
    found = [places.get(str(value), -1) for value in different.tolist()]
    labels = np.array(found, dtype=np.int64)[codes.reshape(-1)]
    if (labels < 0).any():
        at = int((labels < 0).argmax())
        near = closest(values[at], names)
        hint = f"; did you mean {near!r}?" if near and as_text else ""
        shown = repr(str(values[at])) if as_text else values[at]
        raise PluresError(f"{where(at)}: label {shown} is none of the classes {listed(names, 10)}{hint}")
    return torch.from_numpy(labels)
