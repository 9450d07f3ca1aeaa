"""The outputs in what a module returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def told(found: Any) -> Any:
    """The outputs in what a module returns: a tensor, or the field ``logits`` of anything else that has one."""
    if isinstance(found, Mapping):
        return found.get("logits", found)
    return found if isinstance(found, Tensor) else getattr(found, "logits", found)
