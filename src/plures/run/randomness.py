"""Randomness as a pure function of what it is for: never of call order, chunk size or engine."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

DRAW, PLACE = 22, 22
"""Bits of a sort key that hold the draw and the place it breaks ties with; the rest numbers the permutation."""


def _mix(z: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def fold(*parts: int | Keys) -> Keys:
    """One 64-bit key for every combination of its (broadcast) parts."""
    shape = np.broadcast_shapes(*(np.shape(part) for part in parts))
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _mix(key ^ _mix(np.atleast_1d(np.asarray(part, dtype=np.uint64))))
    return key.reshape(shape)


def orders(keys: Keys, sizes: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Random orders of each client's examples.

    Args:
        keys: ``(clients,)``.
        sizes: ``(clients,)`` number of examples.
        epochs: ``(clients,)`` number of orders.

    Returns:
        ``((sizes * epochs).sum(),)``: for each client in turn, its ``epochs[i]`` permutations of ``range(sizes[i])``.
    """
    client = np.repeat(np.arange(len(sizes)), epochs)
    epoch = np.arange(len(client)) - (np.cumsum(epochs) - epochs)[client]
    lengths = sizes[client]
    segment = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(segment)) - (np.cumsum(lengths) - lengths)[segment]
    draws = fold(fold(keys[client], epoch)[segment], place) >> np.uint64(64 - DRAW)
    if len(lengths) >> (64 - DRAW - PLACE) or (sizes >> PLACE).any():
        return place[np.lexsort((draws, segment))]
    packed = (segment.astype(np.uint64) << np.uint64(DRAW + PLACE)) | (draws << np.uint64(PLACE))
    ordered = np.sort(packed | place.astype(np.uint64)) & np.uint64((1 << PLACE) - 1)
    return ordered.astype(np.int64)
