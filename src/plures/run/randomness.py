"""Randomness as a pure function of what it is for: never of call order, chunk size or engine."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def _mix(z: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def fold(*parts: int | Keys) -> Keys:
    """One 64-bit key for every combination of its (broadcast) parts."""
    key = np.zeros((), dtype=np.uint64)
    for part in parts:
        key = _mix(key ^ _mix(np.asarray(part, dtype=np.uint64)))
    return key


def orders(keys: Keys, sizes: NDArray[np.int64], epochs: int) -> NDArray[np.int64]:
    """Random orders of each client's examples, one per epoch.

    Args:
        keys: ``(clients,)``.
        sizes: ``(clients,)`` number of examples.
        epochs: number of orders.

    Returns:
        ``(clients, epochs, max(sizes))``; the first ``sizes[i]`` entries are a permutation, the rest is padding.
    """
    longest = int(sizes.max())
    epoch = fold(keys[:, None], np.arange(epochs, dtype=np.uint64)[None, :])
    draws = fold(epoch[:, :, None], np.arange(longest, dtype=np.uint64)[None, None, :]) >> np.uint64(1)
    draws[np.broadcast_to(np.arange(longest) >= sizes[:, None, None], draws.shape)] = np.iinfo(np.uint64).max
    return np.argsort(draws, axis=-1, kind="stable")
