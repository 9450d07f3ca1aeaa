"""Seven clients with shifted classes, and a small network for them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import nn

from plures.federation import Federation, from_arrays
from plures.models import with_roles


def ragged() -> Federation:
    """Seven clients of different sizes with shifted classes: three classes, five features, real mini-batches."""
    return fresh(_ragged())


@cache
def _ragged() -> Federation:
    generator = np.random.default_rng(5)
    client = np.repeat(np.arange(7), [23, 31, 40, 57, 64, 71, 90])
    x = generator.normal(size=(len(client), 5)).astype(np.float32)
    y = (x @ generator.normal(size=(5, 3)) + np.eye(3)[client % 3]).argmax(1)
    return from_arrays(x, y, client, seed=1, dtype=torch.float64)


def fresh(made: Federation) -> Federation:
    """The same clients with rows of their own, which a test may change."""
    return replace(made, inputs=made.inputs.clone(), targets=made.targets.clone())


def mlp() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    return with_roles(layers, head="2")
