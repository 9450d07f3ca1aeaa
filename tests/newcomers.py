"""Five clients of different sizes with metadata and public rows, two that come later, and a network for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from plures.federation import Federation, from_arrays


def clients() -> tuple[Federation, Federation]:
    """Five clients of different sizes with metadata and public rows, and two that come later."""
    generator = np.random.default_rng(3)
    owner = np.repeat(["a", "b", "c", "d", "e", "f", "g"], [18, 24, 30, 21, 27, 20, 25])
    x = generator.normal(size=(len(owner), 8))
    facts = {
        name: {"group": "one" if i % 2 else "two", "completeness": 1 - 0.1 * i, "reliability": 1 - 0.1 * i}
        for i, name in enumerate("abcdefg")
    }
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
    whole = from_arrays(x, y, owner, metadata=facts, seed=0, dtype=torch.float64, name="seven")
    return whole.donate(0.1).hold_out(["f", "g"])


def linear() -> nn.Module:
    """MOCHA is defined for linear models and refuses others."""
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
