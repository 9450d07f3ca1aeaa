"""Quantized changes: a few levels for each number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.codecs.packing import apart, packed, unpacked
from plures.errors import PluresError
from plures.method import Codec, Leaves, Sending, joined, parted


@dataclass(frozen=True)
class Quantize(Codec):
    """Stochastic quantization of all numbers, as one vector ``v`` for each client (Alistarh et al. 2017, QSGD).

    ``|v| sign(v_j) level / s``, where ``level`` is ``s |v_j| / |v|`` rounded up or down at random, so that the mean is
    ``v``. The norm and whole levels are sent: of two bits for ``s = 1``, four up to 7, one byte up to 127, two beyond.
    Whole numbers of a stage before, such as places, pass as they are. A change may become longer: clip it first, and
    the server clips what it decodes.

    Attributes:
        levels: ``s``.
    """

    levels: int = 127

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 32767:
            raise PluresError(f"Quantize: levels={self.levels}; give a whole number from 1 to 32767")

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        numbers, rest = apart(change)
        flat = joined(numbers)
        norm = flat.to(torch.float64).norm(dim=1, keepdim=True).to(flat.dtype)
        scaled = torch.where(norm > 0, flat.abs() / norm.clamp(min=torch.finfo(flat.dtype).tiny), 0.0) * self.levels
        up = sending.uniform(flat.shape[1]) < scaled - scaled.floor()
        levels = (flat.sign() * (scaled.floor() + up)).clamp(-self.levels, self.levels)
        return {"levels": self.sent(levels), "norm": norm[:, 0], **rest}, memory

    def sent(self, levels: Tensor) -> Tensor:
        """Whole levels ``(n, d)`` from ``-s`` to ``s`` as they are sent."""
        if self.bits is None:
            return levels.to(torch.int8 if self.levels <= 127 else torch.int16)
        return packed((levels + self.levels).to(torch.uint8), self.bits)

    @property
    def bits(self) -> int | None:
        """Bits for each level where several share a byte; ``None`` for whole bytes."""
        return next((bits for bits in (2, 4) if 2 * self.levels < 2**bits), None)

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        numbers, rest = apart(like)
        levels = payload["levels"].long()
        if self.bits is not None:
            levels = unpacked(payload["levels"], joined(numbers).shape[1], self.bits).long() - self.levels
        if bool((levels.abs() > self.levels).any()) or not bool((payload["norm"] >= 0).all()):
            raise PluresError(f"a quantized change has a level beyond {self.levels} or a negative norm")
        flat = levels.to(payload["norm"].dtype) * payload["norm"].unsqueeze(1) / self.levels
        found = parted(flat, numbers) | {k: payload[k] for k in rest}
        return {k: found[k] for k in like}
