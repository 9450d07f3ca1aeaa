"""Catalogues built from the modules of a package: a new file is a new entry."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeVar

from plures.errors import PluresError


class HasName(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=HasName)


def entries(package: str, kind: type[T]) -> dict[str, T]:
    """Name -> object, for every object in a package's modules that is bound to a variable of the same name.

    Args:
        package: name of the package; its modules are imported.
        kind: type of the entries; all other objects are ignored.
    """
    found: dict[str, T] = {}
    where: dict[str, str] = {}
    for module in iter_modules(import_module(package).__path__):
        for name, value in vars(import_module(f"{package}.{module.name}")).items():
            if isinstance(value, kind) and value.name == name:
                if value is not found.get(name, value):
                    raise PluresError(f"{package}: {where[name]} and {module.name} both define {name!r}; rename one")
                found[name], where[name] = value, module.name
    return found
