"""Numbers of half the size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from plures.errors import PluresError, suggestion
from plures.method import Codec, Leaves, Sending

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cast(Codec):
    """Send numbers as bfloat16 or float16, rounded to the nearest; numbers beyond the type's range become its largest.

    Of a change of 1e-3, bfloat16 keeps two to three decimal digits; float16 three, but it loses what is below 6e-8.

    Attributes:
        to: ``bfloat16`` or ``float16``.
    """

    to: Literal["bfloat16", "float16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.to not in HALVES:
            raise PluresError(f"Cast: no type {self.to!r}; {suggestion(self.to, HALVES)}")

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        kind = HALVES[self.to]
        most = torch.finfo(kind).max
        return {k: t.clamp(-most, most).to(kind) if t.is_floating_point() else t for k, t in change.items()}, memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        return {k: payload[k].to(form.dtype) for k, form in like.items()}
