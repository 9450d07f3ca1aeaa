"""Clients that agree on half of a problem, and a small network for them."""

from __future__ import annotations

import numpy as np
from torch import nn

import plures
from plures.federation import from_arrays
from plures.run import Execution

FAST = Execution("vmap", 8, False, "float32")


def people(clients: int = 6, seed: int = 0):
    """Clients that agree on half of the problem and disagree on the other half."""
    generator = np.random.default_rng(seed)
    client = np.repeat(np.arange(clients), 40)
    x = generator.normal(size=(len(client), 4)).astype(np.float32)
    y = ((x[:, 0] + (-1.0) ** client * x[:, 1]) > 0).astype(np.int64)
    return from_arrays(x, y, [f"p{c}" for c in client], name="people", seed=seed)


def net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return plures.with_roles(layers, head="2")
