"""Small networks of which clients hold parts."""

from __future__ import annotations

import torch
from torch import nn

from plures.models import with_roles


def small() -> nn.Module:
    """Five inputs, hidden layers of 6 and 4, three classes: 79 numbers and 336 operations, or 35 and 132 of half."""
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    return with_roles(layers, head="4")


def one_hidden() -> nn.Module:
    """``o = w2 . relu(w1 x)`` with ``w1 = (1, 2)`` and ``w2 = (3, -1)``."""
    layers = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        layers[2].weight.copy_(torch.tensor([[3.0, -1.0]]))
    return layers
