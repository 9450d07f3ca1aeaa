"""Part 4, wire: what happens to an upload before it leaves the client."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from plures.models import Leaves


class Codec(Protocol):
    """One stage of the wire: clip, noise, sparsify, quantize, mask."""

    def encode(self, change: Leaves, keys: Tensor) -> Leaves:
        """What the server receives instead of a block's change.

        Args:
            change: value after local work minus value received, stacked ``(clients, ...)``.
            keys: ``(clients,)`` int64 random keys of this round, a function of seed, client and round.
        """

    def nbytes(self, change: Leaves, before: int) -> int:
        """Bytes that one client sends for a change ``(1, ...)`` that took ``before`` bytes without this stage."""


Wire = tuple[Codec, ...]


def encode(wire: Wire, value: Leaves, received: Leaves, keys: Tensor) -> Leaves:
    """What the server receives of a block: the received value plus what the wire lets through of the change."""
    if not wire:
        return value
    change = {k: v - received[k] for k, v in value.items()}
    for codec in wire:
        change = codec.encode(change, keys)
    made = {k: received[k] + d for k, d in change.items()}
    return {k: t if value[k].is_floating_point() else t.round().to(value[k].dtype) for k, t in made.items()}
