"""The use cases by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plures.cases.case import Case
from plures.discover import entries
from plures.errors import PluresError, suggestion

CASES: Mapping[str, Case] = MappingProxyType(dict(sorted(entries("plures.cases", Case).items())))
"""Collected from the modules of this package."""


def find_case(name: str) -> Case:
    """The case of a name."""
    if name not in CASES:
        raise PluresError(f"no case {name!r}: {suggestion(name, CASES)}")
    return CASES[name]
