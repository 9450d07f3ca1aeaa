"""Random numbers that depend on names, never on call order or on the process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]

ROUNDS, MULTIPLIERS = 10, (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
"""Rounds and constants of Philox-4x64-10."""
SHORT = 64
"""Longest draw that is computed for many generators at once; for a longer one, a generator object is cheaper."""
TOGETHER = 1 << 17
"""Generators computed at once."""


def generator(*key: object) -> np.random.Generator:
    """A generator that is a pure function of its key, e.g. ``generator(seed, "split", client)``.

    The key's parts are joined by their ``repr`` and hashed (SHA-256); 128 bits of the hash are the key of a Philox
    generator, so two different keys give independent streams on every machine.
    """
    digest = hashlib.sha256("\x1f".join(map(repr, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


class Generators:
    """Many generators at once, each drawing exactly what `generator` draws for its key.

    A generator object costs as much as a small client's whole split, so those of many clients are computed together:
    Philox-4x64-10 (Salmon, Moraes, Dror, Shaw 2011) as NumPy runs it, in arrays over the generators.

    Args:
        prefix: the parts that all keys have in common.
        last: the last part of each key.

    Attributes:
        keys: ``(generators, 2)`` uint64 Philox keys, the low word first.
    """

    def __init__(self, prefix: tuple[object, ...], last: Sequence[object]) -> None:
        common = hashlib.sha256("".join(f"{part!r}\x1f" for part in prefix).encode())
        digests = bytearray()
        for part in last:
            own = common.copy()
            own.update(repr(part).encode())
            digests += own.digest()[:16]
        self.keys: NDArray[np.uint64] = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)[:, ::-1].astype("<u8")

    def __len__(self) -> int:
        return len(self.keys)

    def shuffled(self, numbers: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.float64], Places]:
        """The results of ``random(number)`` and then ``permutation(size)`` of each generator.

        Args:
            numbers: ``(generators,)`` how many numbers in [0, 1).
            sizes: ``(generators,)`` lengths of the permutations.

        Returns:
            ``(numbers.sum(),)`` and ``(sizes.sum(),)``, generator after generator.
        """
        drawn = np.empty(int(numbers.sum()))
        orders = np.empty(int(sizes.sum()), dtype=np.int64)
        begin, start = numbers.cumsum() - numbers, sizes.cumsum() - sizes
        short = (numbers <= SHORT) & (sizes <= SHORT)
        alike = numbers * (SHORT + 1) + sizes
        for kind in np.unique(alike[short]):
            which = np.flatnonzero(short & (alike == kind))
            number, size = divmod(int(kind), SHORT + 1)
            for some in np.split(which, np.arange(TOGETHER, len(which), TOGETHER)):
                found, order, exact = _drawn(self.keys[some], number, size)
                drawn[begin[some, None] + np.arange(number)] = found
                orders[start[some, None] + np.arange(size)] = order
                short[some[~exact]] = False
        for one in np.flatnonzero(~short).tolist():
            low, high = self.keys[one].tolist()
            own = np.random.Generator(np.random.Philox(key=low | high << 64))
            drawn[begin[one] : begin[one] + numbers[one]] = own.random(int(numbers[one]))
            orders[start[one] : start[one] + sizes[one]] = own.permutation(int(sizes[one]))
        return drawn, orders


def _drawn(keys: NDArray[np.uint64], number: int, size: int) -> tuple[NDArray[np.float64], Places, NDArray[np.bool_]]:
    """``random(number)`` and ``permutation(size)`` of each generator, and for which of them the words sufficed.

    A permutation draws integers by rejection, so the number of words that it takes is random; the few generators that
    need many more than usual must be run individually.
    """
    bits = [last.bit_length() for last in range(1, size)]
    chance = [(last + 1) / (1 << bit) for last, bit in enumerate(bits, start=1)]
    usual = sum(1 / p for p in chance) + 6 * sum((1 - p) / p**2 for p in chance) ** 0.5
    words = _words(keys, number + (int(usual) + 1) // 2)
    found = (words[:, :number] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    halves = np.ascontiguousarray(words[:, number:]).astype("<u8").view("<u4").astype(np.int64)
    order = np.broadcast_to(np.arange(size), (len(keys), size)).copy()
    exact = np.ones(len(keys), dtype=bool)
    used, rows = np.zeros(len(keys), dtype=np.int64), np.arange(len(keys))
    for last in range(size - 1, 0, -1):
        other, asked = np.zeros(len(keys), dtype=np.int64), rows
        while len(asked):
            there = used[asked] < halves.shape[1]
            exact[asked[~there]] = False
            asked = asked[there]
            value = halves[asked, used[asked]] & ((1 << bits[last - 1]) - 1)
            used[asked] += 1
            other[asked] = np.minimum(value, last)
            asked = asked[value > last]
        order[:, last], order[rows, other] = order[rows, other], order[:, last].copy()
    return found, order, exact


def _words(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The first ``count`` words of each Philox generator, ``(generators, count)``."""
    blocks = []
    for counter in range(1, -(-count // 4) + 1):
        x = [np.full(len(keys), word, dtype=np.uint64) for word in (counter, 0, 0, 0)]
        low, high = keys[:, 0].copy(), keys[:, 1].copy()
        for _ in range(ROUNDS):
            first, second = _product(MULTIPLIERS[0], x[0]), _product(MULTIPLIERS[1], x[2])
            x = [second[0] ^ x[1] ^ low, second[1], first[0] ^ x[3] ^ high, first[1]]
            low += WEYL[0]
            high += WEYL[1]
        blocks.append(np.stack(x, 1))
    return np.concatenate(blocks, 1)[:, :count] if blocks else np.empty((len(keys), 0), dtype=np.uint64)


def _product(a: int, b: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The high and the low word of a product of 64-bit numbers."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high = np.uint64(a & 0xFFFFFFFF), np.uint64(a >> 32)
    b_low, b_high = b & mask, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half), np.uint64(a) * b
