"""Randomness as a pure function of its purpose, never of call order, chunk size or engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plures.names import name_key as name_key

Keys = NDArray[np.uint64]

GAMMA = 0x9E3779B97F4A7C15
DRAW, PLACE = 22, 22
"""Bits of a sort key for the draw, and for the place, which breaks ties; the others number the permutation."""


def _mix(z: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    z = z + np.uint64(GAMMA)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _mix_number(z: int) -> int:
    """:func:`_mix` for a single number."""
    mask = (1 << 64) - 1
    z = (z + GAMMA) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def fold(*parts: int | Keys) -> Keys:
    """One 64-bit key for every combination of its (broadcast) parts."""
    key: Keys | int = 0
    for part in parts:
        mixed = _mix(part.astype(np.uint64)) if isinstance(part, np.ndarray) else _mix_number(int(part))
        if isinstance(key, int) and isinstance(mixed, int):
            key = _mix_number(key ^ mixed)
        else:
            key = _mix(np.bitwise_xor(key, mixed, dtype=np.uint64))
    return np.asarray(key, dtype=np.uint64)


def unit(*parts: int | Keys) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for every combination of the (broadcast) parts."""
    return np.asarray((fold(*parts) >> np.uint64(11)).astype(np.float64) / 2**53)


def branch(keys: Keys, *parts: int) -> Keys:
    """A key for the given parts from each of some keys."""
    return _mix(keys ^ fold(*parts))


def orders(keys: Keys, sizes: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Random orders of each client's examples.

    Args:
        keys: ``(clients,)``.
        sizes: ``(clients,)`` number of examples.
        epochs: ``(clients,)`` number of orders.

    Returns:
        ``((sizes * epochs).sum(),)``: for each client in turn, its ``epochs[i]`` permutations of ``range(sizes[i])``.
    """
    lengths = np.repeat(sizes, epochs)
    epoch = _places(epochs)
    place = _places(lengths)
    orders = _mix(np.repeat(keys, epochs) + epoch * np.uint64(GAMMA))
    draws = _mix(np.repeat(orders, lengths) + place * np.uint64(GAMMA)) >> np.uint64(64 - DRAW)
    number = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    if len(lengths) >> (64 - DRAW - PLACE) or int(sizes.max()) >> PLACE:
        return place[np.lexsort((draws, number))]
    packed = ((number << np.uint64(DRAW) | draws) << np.uint64(PLACE)) | place
    packed.sort()
    packed &= np.uint64((1 << PLACE) - 1)
    return packed


def _places(lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """``range(length)`` for each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1], dtype=np.uint64) - np.repeat(ends - lengths, lengths).astype(np.uint64)
