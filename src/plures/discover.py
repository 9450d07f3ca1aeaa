"""Catalogues that are made of the modules of a package: a new file is a new entry."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeVar


class HasName(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=HasName)


def entries(package: str, kind: type[T]) -> dict[str, T]:
    """What the modules of a package define under its own name, by name.

    Args:
        package: name of the package, whose modules are imported.
        kind: the entries are of this type; whatever else the modules hold is left out.
    """
    found: dict[str, T] = {}
    for module in iter_modules(import_module(package).__path__):
        for name, value in vars(import_module(f"{package}.{module.name}")).items():
            if isinstance(value, kind) and value.name == name:
                found[name] = value
    return found
