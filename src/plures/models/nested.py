"""Nested structures of tensors: dictionaries, lists, tuples and `Inputs` whose innermost values are tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from plures.federation.inputs import Inputs
from plures.models.network import Marked


def ends(value: Any) -> list[Any]:
    """The innermost values of a structure, in order: everything that is not a dictionary, list, tuple or `Inputs`."""
    if isinstance(value, Inputs):
        return list(value.parts.values())
    if isinstance(value, dict):
        return [end for part in value.values() for end in ends(part)]
    if isinstance(value, list | tuple):
        return [end for part in value for end in ends(part)]
    return [value]


def mapped(fn: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Apply ``fn`` to the corresponding tensors of several structures; the result has the form of the first.

    Args:
        fn: called with one tensor of each structure.
        first: gives the form of the result; leaves that are :class:`~plures.models.network.Marked` stay so.
        others: structures of the same form.

    Raises:
        ValueError: if another structure has more or fewer parts.
    """
    if isinstance(first, dict):
        if any(first.keys() != other.keys() for other in others):
            raise ValueError(f"structures of different forms: {list(first)} and {[list(other) for other in others]}")
        made = {key: mapped(fn, part, *(other[key] for other in others)) for key, part in first.items()}
        return Marked(made, first.fixed) if isinstance(first, Marked) else made
    if isinstance(first, Inputs):
        return Inputs(mapped(fn, first.parts, *(other.parts for other in others)))
    if isinstance(first, list | tuple):
        parts = [mapped(fn, *part) for part in zip(first, *others, strict=True)]
        if isinstance(first, list):
            return parts
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return fn(first, *others)
