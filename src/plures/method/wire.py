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

    def nbytes(self, change: Leaves) -> int:
        """Bytes one client sends for it."""


Wire = tuple[Codec, ...]
