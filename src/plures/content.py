"""Equality by content, of objects that hold tensors and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T")


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors and arrays in them by type, shape and every entry, NaN like NaN.

    Examples:
        >>> alike({"a": torch.ones(2)}, {"a": torch.ones(2)}), alike(torch.ones(2), torch.ones(2, dtype=torch.int64))
        (True, False)
    """
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        known = getattr(type(one), "same", _same)  # a kind of tensor that is never read as a whole has its own
        return type(one) is type(other) and bool(known(one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if type(one) is not type(other) or one.dtype != other.dtype:
            return False
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fcmM"))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other) or (one != one and other != other and type(one) is type(other))


def by_content(kind: type[T]) -> type[T]:
    """Make objects of a dataclass equal where their fields are :func:`alike`; they have no hash then."""
    kind.__eq__ = _equal  # type: ignore[method-assign]
    kind.__hash__ = None  # type: ignore[assignment]
    return kind


def _equal(self: object, other: object) -> bool:
    if type(other) is not type(self):
        return False
    names = [field.name for field in fields(self) if field.compare]  # type: ignore[arg-type]
    return all(alike(getattr(self, name), getattr(other, name)) for name in names)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    equal = one == other
    return bool((equal | (one.isnan() & other.isnan()) if one.is_floating_point() else equal).all())
