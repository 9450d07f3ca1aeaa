"""Part 4, wire: what happens to an upload before it leaves the client."""

from __future__ import annotations

from numbers import Integral
from typing import Protocol

from torch import Tensor

from plures.errors import PluresError
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
        """Bytes that one client sends for a change ``(1, ...)`` that took ``before`` bytes without this stage.

        A whole number of at least 1 for a change that has entries: whatever arrives has been sent.
        """


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


def size(wire: Wire, change: Leaves) -> int:
    """Bytes that one client sends of a block, by what the stages say.

    Args:
        wire: the stages.
        change: of one client, ``(1, ...)``.

    Raises:
        PluresError: if a stage claims what cannot be.
    """
    sent = sum(t.nbytes for t in change.values())
    for codec in wire if sent else ():
        claimed = codec.nbytes(change, sent)
        if not isinstance(claimed, Integral) or isinstance(claimed, bool) or claimed < 1:
            raise PluresError(
                f"wire stage {type(codec).__name__} says that it sends {claimed!r} bytes of {sent}: let nbytes return "
                "the whole number of bytes that a client sends, at least 1"
            )
        sent = int(claimed)
    return sent
