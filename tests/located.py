"""Data sets that are on this machine."""

from __future__ import annotations

import pytest

from plures.errors import PluresError
from plures.federation import locate


def available(name: str) -> bool:
    try:
        locate(name)
    except PluresError:
        return False
    return True


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not available(name), reason=f"data set {name} is not there (set PLURES_DATA)")
