"""Small whole numbers in bytes: several to a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.method import Leaves


def packed(numbers: Tensor, bits: int = 1) -> Tensor:
    """Whole numbers below ``2 ** bits``, ``(n, d)``, as bytes ``(n, ceil(d * bits / 8))``.

    Args:
        numbers: boolean or whole.
        bits: for each number: 1, 2, 4 or 8.

    Examples:
        >>> packed(torch.tensor([[1, 0, 2, 3, 1]]), bits=2).tolist()
        [[225, 1]]
    """
    each = 8 // bits
    padded = torch.nn.functional.pad(numbers.to(torch.uint8), (0, -numbers.shape[1] % each))
    places = 2 ** (bits * torch.arange(each, dtype=torch.uint8, device=numbers.device))
    return (padded.view(len(numbers), -1, each) * places).sum(-1, dtype=torch.uint8)


def unpacked(found: Tensor, entries: int, bits: int = 1) -> Tensor:
    """The inverse of :func:`packed`: ``(n, entries)`` uint8.

    Examples:
        >>> unpacked(torch.tensor([[225, 1]], dtype=torch.uint8), 5, bits=2).tolist()
        [[1, 0, 2, 3, 1]]
    """
    shifts = bits * torch.arange(8 // bits, dtype=torch.uint8, device=found.device)
    several = (found.unsqueeze(-1) >> shifts).bitwise_and(2**bits - 1)
    return several.flatten(1)[:, :entries]


def apart(leaves: Leaves) -> tuple[Leaves, Leaves]:
    """Leaves of floating point, and the others."""
    numbers = {k: t for k, t in leaves.items() if t.is_floating_point()}
    return numbers, {k: t for k, t in leaves.items() if k not in numbers}
