"""plures as if it were of another version."""

from __future__ import annotations

import sys

import pytest


def become(version: str, patch: pytest.MonkeyPatch) -> None:
    """Replace the version in every loaded module of plures that holds it."""
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "plures" and hasattr(module, "__version__"):
            patch.setattr(module, "__version__", version)
