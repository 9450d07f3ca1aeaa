"""A one-line ``repr`` for objects that hold data: shapes and counts, never the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")
LISTED = 6


def brief(kind: type[T]) -> type[T]:
    """Give a dataclass a ``repr`` with the shapes of its arrays and the lengths of its collections.

    Tracebacks, logs and notebooks print the ``repr`` of objects; it must not contain rows of patients.
    """
    kind.__repr__ = _line  # type: ignore[method-assign]
    return kind


def described(value: object) -> str:
    """A short description of a value: type and shape of an array, length of a collection unless it is short."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, str | bytes | range) or not isinstance(value, Collection):
        return repr(value)
    if len(value) > LISTED or not isinstance(value, Mapping | tuple | list | set | frozenset):
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {described(entry)}' for key, entry in value.items())}}}"
    return f"({', '.join(map(described, value))})"


def _line(self: object) -> str:
    held = ((field.name, getattr(self, field.name)) for field in fields(self) if field.repr)  # type: ignore[arg-type]
    return f"{type(self).__name__}({', '.join(f'{name}={described(value)}' for name, value in held)})"
