"""Discrete Gaussian numbers: noise for sums of whole numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plures.entropy import Entropy, uniform
from plures.errors import PluresError


def discrete_gaussian(deviation: float, count: int, entropy: Entropy) -> Tensor:
    """Independent whole numbers ``k`` with probability proportional to ``exp(-k^2 / (2 deviation^2))``, int64.

    By rejection from discrete Laplace numbers (Canonne, Kamath, Steinke 2020, Algorithm 3), with coins of 53 bits.

    Args:
        deviation: sigma, of the continuous Gaussian with that density; nearly the standard deviation from 1 on.
        count: how many.
        entropy: random bytes.

    Raises:
        PluresError: if ``deviation`` is not positive and finite.
    """
    if not 0 < deviation < math.inf:
        raise PluresError(f"deviation={deviation}: give a positive number")
    scale = math.floor(deviation) + 1
    found = [torch.zeros(0, dtype=torch.int64)]
    while (missing := count - sum(map(len, found))) > 0:
        size, sign, coin = uniform(entropy, 3, 2 * missing + 16)
        size = (-scale * torch.log1p(-size)).floor()
        negative = sign < 0.5
        takes = ~(negative & (size == 0)) & (
            coin < torch.exp(-((size - deviation**2 / scale) ** 2) / (2 * deviation**2))
        )
        found.append(torch.where(negative, -size, size)[takes].to(torch.int64)[:missing])
    return torch.cat(found)
