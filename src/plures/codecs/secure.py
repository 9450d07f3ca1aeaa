"""The stage under which a server learns the sum of all uploads and no single one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch

from plures.codecs.discrete import discrete_gaussian
from plures.errors import PluresError
from plures.extras import needed
from plures.method import Channel, Codec, Leaves, Sending, joined, parted
from plures.method.wire import BeyondError, enough

STEPS = 2**30
"""Steps from 0 to the bound of a mean."""


@dataclass(frozen=True)
class SecureSum(Codec):
    """Whole numbers modulo ``2 ** 32`` that clients add masks to, so that only their sum can be read.

    A client sends ``round(d w / W / step)`` of its change ``d``, where ``w`` is its weight, ``W`` the joint weight of
    all that are asked, and ``step = bound / 2 ** 30``. A sum of these is at most ``2 ** 30`` and half a step for each
    client, so it never overflows, however many there are; the mean differs from the plain one by at most half a step
    for each client. The masks are those of :mod:`plures.secure`: clients that drop out after they have dealt their
    shares leave masks behind, which the others reveal; if too few stay, the round does not count.

    It is the last stage. What leaves beside the upload is not masked: a method or network that sends more is refused,
    unless ``passes`` names the channels. Numbers such as the training loss are sent in the clear.

    With ``noise``, every client also adds a discrete Gaussian, its part of the noise that the sum of the fewest clients
    shall have that must come (:mod:`plures.privacy.distributed`); ``dp(trust=sum)`` sets it.

    Attributes:
        bound: largest absolute change of any number; a client with a larger one sends nothing and says so.
        share: of the clients that are asked, more than this must stay to the end: at least one half.
        passes: channels whose tensors may leave as they are (``buffers``, ``gradients``).
        noise: standard deviation of the noise on the sum of changes, at least; each upload then counts 1.
    """

    sums: ClassVar[bool] = True

    bound: float = 8.0
    share: float = 0.5
    passes: tuple[str, ...] = ()
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.bound < inf:
            raise PluresError(f"SecureSum: bound={self.bound}; give a positive number")
        if not 0 <= self.noise < inf:
            raise PluresError(f"SecureSum: noise={self.noise}; give 0 or more")
        if not 0.5 <= self.share < 1:
            raise PluresError(f"SecureSum: share={self.share}; give a share from 0.5 to below 1")

    def start(self, change: Leaves) -> Leaves:
        needed("cryptography", "a secure sum", "secure")
        return {}

    @property
    def step(self) -> float:
        return self.bound / STEPS

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        known = sending.summed
        assert known is not None, "this stage sums"
        flat = joined(change).double()
        if not bool((flat.abs() <= self.bound).all()):
            raise BeyondError(
                f"SecureSum: a change of {float(flat.abs().max()):.3g} is beyond {self.bound:g}; give a larger bound, "
                "or clip first: clip+secure_sum"
            )
        part = (known.weights / known.mass).to(flat.device).unsqueeze(1)
        whole = (flat * part / self.step).round()
        if self.noise:
            fewest = enough(round(known.mass), self.share)
            deviation = self.noise / (self.step * known.mass * fewest**0.5)
            drawn = [discrete_gaussian(deviation, flat.shape[1], source) for source in sending.sources()]
            whole = whole + torch.stack(drawn).to(whole)
        return {"words": whole.to(torch.int32)}, memory

    def total(self, payload: Leaves, like: Leaves, mass: float) -> Leaves:
        return parted(payload["words"].double() * self.step * mass, like)

    def refusal(self, channel: Channel) -> str | None:
        if not channel.tensors or channel.name in self.passes:
            return None
        return f"it would leave without a mask; take a method without it, or let it pass: passes=({channel.name!r},)"
