"""How large a network is."""

from __future__ import annotations

from torch import nn


def parameters(module: nn.Module) -> int:
    """Numbers that a module holds as parameters."""
    return sum(leaf.numel() for leaf in module.parameters())
