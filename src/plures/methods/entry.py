"""What the catalogue says about a method."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plures.errors import PluresError, PluresWarning
from plures.method import Method


@dataclass(frozen=True)
class Entry:
    """A method in the catalogue: called with its parameters, it gives the :class:`~plures.method.Method`.

    Attributes:
        name: name on the command line.
        title: name in tables.
        family: group of the field it belongs to.
        citation: authors, year, venue and the algorithm or equation number.
        build: the function that makes the method.
        space: values of its main strength worth trying; empty when it has none.
    """

    name: str
    title: str
    family: str
    citation: str
    build: Callable[..., Method]
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __call__(self, *args: Any, **parameters: Any) -> Method:
        try:
            inspect.signature(self.build).bind(*args, **parameters)
        except TypeError as error:
            known = ", ".join(f"{key}={value!r}" for key, value in self.defaults.items()) or "none"
            raise PluresError(f"method {self.name!r}: {error}; its parameters are {known}") from None
        return self.build(*args, **parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters and their default values."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}

    @property
    def summary(self) -> str:
        """First paragraph of the method's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n\n")[0].replace("\n", " ")


def entry(
    title: str, family: str, citation: str, space: Mapping[str, tuple[Any, ...]] | None = None
) -> Callable[[Callable[..., Method]], Entry]:
    """Describe a method where it is defined."""

    def describe(build: Callable[..., Method]) -> Entry:
        return Entry(build.__name__, title, family, citation, build, space or {})

    return describe


def require(condition: bool, message: str) -> None:
    """Refuse an impossible parameter."""
    if not condition:
        raise PluresError(message)


def remark(condition: bool, message: str) -> None:
    """Warn about a legal parameter that makes the method amount to another."""
    if condition:
        warnings.warn(message, PluresWarning, stacklevel=3)
