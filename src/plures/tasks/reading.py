"""Raw targets: their type, and which of them are missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from plures.cells import absent
from plures.errors import PluresError
from plures.names import check_words
from plures.tasks.task import Array, Where


def plain(targets: Array, where: Where) -> Array:
    """Targets of one type: booleans, integers, floating point or text; none may be missing."""
    if targets.dtype.kind == "S":
        targets = targets.astype(str)
    if targets.dtype.kind in "OU":
        targets = _of_cells(targets, where)
    if targets.dtype.kind not in "fiubU":
        raise PluresError(
            f"targets of type {targets.dtype} are neither classes nor numbers; convert them to numbers or text"
        )
    return targets


def refuse(bad: Tensor, what: str, where: Callable[[int], str]) -> None:
    """Raise PluresError at the first row that is bad."""
    if bool(bad.any()):
        raise PluresError(f"{where(int(bad.int().argmax()))}: {what}")


def distinct(names: Iterable[object], option: str, word: str) -> tuple[str, ...]:
    """Names of classes or labels, without duplicates.

    Args:
        names: in their order.
        option: the task's option that gives them.
        word: what one of them is called in messages.
    """
    if isinstance(names, str):
        raise PluresError(f"{option}={names!r}: give a list of names, [{names!r}]")
    found = tuple(str(name) for name in names)
    times = Counter(found)
    if len(times) < len(found):
        twice = next(name for name, count in times.items() if count > 1)
        raise PluresError(f"{option}: {twice!r} is given twice")
    check_words(found, word)
    return found


def _of_cells(targets: Array, where: Where) -> Array:
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
        raise PluresError(f"targets of type {type(odd[0]).__name__}; convert them to numbers or text")
    text = [str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell) for cell in cells]
    return np.array(text).reshape(targets.shape)
