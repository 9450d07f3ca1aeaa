"""Clipping: no upload goes farther than a bound, whatever blocks it has."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch

from plures.errors import PluresError
from plures.method import Channel, Codec, Leaves, Sending, joined


@dataclass(frozen=True)
class Clip(Codec):
    """Shorten a change to a joint L2 norm of at most ``norm`` over all blocks that travel: ``d min(1, norm / |d|)``.

    The server does the same to what it decodes, so neither a stage after this one (such as ``Quantize``) nor a client
    that does not keep to it can lengthen a change again. Tensors that leave beside the change are not clipped, so a
    method that sends some is refused unless ``passes`` names their channels.

    It works on changes, so it stands before stages that make something else of them. With error feedback it stands
    inside, ``Feedback((Clip(1.0), TopK(0.01)))``: the client adds what was cut off to its next change.

    Attributes:
        norm: the bound ``C``.
        passes: channels whose tensors may leave as they are (``buffers``, ``weights``, ``views``, ``gradients``).
    """

    bounds: ClassVar[bool] = True

    norm: float = 1.0
    passes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.norm < inf:
            raise PluresError(f"Clip: norm={self.norm}; give a positive number")

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        return self.clipped(change), memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        return self.clipped(payload)

    def total(self, payload: Leaves, like: Leaves, mass: float) -> Leaves:
        """The sum as it is: the bound is the clients' alone, for the server sees no single upload."""
        return payload

    def clipped(self, change: Leaves) -> Leaves:
        """Changes ``(clients, ...)``, each within the bound in spite of rounding."""
        if odd := [name for name, t in change.items() if not t.is_floating_point()]:
            raise PluresError(f"Clip: {odd[0]!r} of the stage before holds whole numbers; put Clip before that stage")
        flat = joined(change)
        length = flat.to(torch.float64).norm(dim=1)
        within = 1 - 4 * torch.finfo(flat.dtype).eps
        scale = torch.where(length > self.norm, self.norm * within / length, 1.0)
        return {k: t * scale.to(t.dtype).view(-1, *(1,) * (t.dim() - 1)) for k, t in change.items()}

    def refusal(self, channel: Channel) -> str | None:
        if not channel.tensors or channel.name in self.passes:
            return None
        return f"it would leave unclipped; take a method without it, or let it pass: passes=({channel.name!r},)"
