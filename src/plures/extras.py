"""Libraries that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any

from plures.errors import PluresError


def needed(module: str, what: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: name of the module.
        what: the feature that needs it, for the message.
        extra: the extra of plures that installs it.

    Raises:
        PluresError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise PluresError(f"{what} needs {missing}: pip install 'plures[{extra}]'") from error
