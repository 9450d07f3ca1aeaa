"""Five clients of different sizes with metadata and public rows, two newcomers, and a network for them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from plures.federation import Federation, from_arrays
from shifted import fresh

SEVEN = (18, 24, 30, 21, 27, 20, 25)
"""Rows of each client."""


def clients(
    sizes: tuple[int, ...] = SEVEN, later: tuple[str, ...] = ("f", "g"), name: str = "seven"
) -> tuple[Federation, Federation]:
    """Clients a, b, ... of these sizes with metadata and public rows, and those of them that are newcomers."""
    seen, new = _clients(sizes, later, name)
    return fresh(seen), fresh(new)


@cache
def _clients(sizes: tuple[int, ...], later: tuple[str, ...], name: str) -> tuple[Federation, Federation]:
    generator = np.random.default_rng(3)
    owners = "abcdefg"[: len(sizes)]
    owner = np.repeat(list(owners), sizes)
    x = generator.normal(size=(len(owner), 8))
    facts = {
        client: {"group": "one" if i % 2 else "two", "completeness": 1 - 0.1 * i, "reliability": 1 - 0.1 * i}
        for i, client in enumerate(owners)
    }
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
    whole = from_arrays(x, y, owner, metadata=facts, seed=0, dtype=torch.float64, name=name)
    return whole.donate(0.1).hold_out(later)


def linear() -> nn.Module:
    """MOCHA is defined for linear models and refuses others."""
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
