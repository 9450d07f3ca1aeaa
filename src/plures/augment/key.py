"""Random numbers for every example of a batch, as a pure function of its key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(bits: int) -> int:
    """The int64 with the bits of a 64-bit number."""
    return bits - (1 << 64) if bits >> 63 else bits


def mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on the bits of int64 numbers."""
    z = z + _signed(GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


class Key:
    """A source of random numbers for ``n`` examples.

    Each example has numbers of its own, which do not depend on the other examples. They are given in the order in which
    they are asked for, so the same calls on the same key give the same numbers.

    Args:
        numbers: ``(n,)`` int64, one for each example.
        partner: ``(n,)`` position of another example of the same client's batch, the next one; an example that is
            alone is its own partner.

    Examples:
        >>> import torch
        >>> key = Key(torch.tensor([1, 2]), torch.tensor([1, 0]))
        >>> tuple(key.uniform(3).shape), bool((key.uniform() == key.uniform()).any())
        ((2, 3), False)
    """

    def __init__(self, numbers: Tensor, partner: Tensor) -> None:
        self.numbers, self.partner = numbers, partner
        self._given = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, number: int) -> Key:
        """A key with other numbers for a part of the work."""
        return Key(mix(self.numbers ^ mix(torch.full_like(self.numbers, number))), self.partner)

    def bits(self, *shape: int) -> Tensor:
        """The next 64 random bits of each entry, ``(n, *shape)`` int64."""
        size = math.prod(shape)
        places = torch.arange(self._given, self._given + size, device=self.numbers.device)
        self._given += size
        return mix(self.numbers[:, None] + places * _signed(GAMMA)).view(len(self), *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in ``[low, high)``, ``(n, *shape)`` float32."""
        return low + (high - low) * (_shifted(self.bits(*shape), 40).float() / 2**24)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, ``(n, *shape)`` float32 (Box, Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from ``low`` up to, but not including, ``high``, ``(n, *shape)`` int64."""
        return low + (_shifted(self.bits(*shape), 32) * (high - low) >> 32)
