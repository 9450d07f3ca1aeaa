"""One line about an object that holds data: shapes and counts, never the data themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")
LISTED = 6


def brief(kind: type[T]) -> type[T]:
    """A dataclass whose ``repr`` tells the shape of its arrays and the length of its collections.

    Tracebacks, logs and notebooks print the ``repr`` of whatever is at hand; rows of patients must not be in it.
    """
    kind.__repr__ = _line  # type: ignore[method-assign]
    return kind


def told(value: object) -> str:
    """A value in a few words: an array by type and shape, a collection by its length unless it is short."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, str | bytes | range) or not isinstance(value, Collection):
        return repr(value)
    if len(value) > LISTED or not isinstance(value, Mapping | tuple | list | set | frozenset):
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {told(entry)}' for key, entry in value.items())}}}"
    return f"({', '.join(map(told, value))})"


def _line(self: object) -> str:
    held = ((field.name, getattr(self, field.name)) for field in fields(self) if field.repr)  # type: ignore[arg-type]
    return f"{type(self).__name__}({', '.join(f'{name}={told(value)}' for name, value in held)})"
