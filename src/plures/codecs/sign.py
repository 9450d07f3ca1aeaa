"""One bit for each number: its sign, and one size for each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plures.codecs.packing import apart, packed, unpacked
from plures.errors import PluresError
from plures.method import Codec, Leaves, Sending, joined, parted


@dataclass(frozen=True)
class Sign(Codec):
    """Scaled signs, ``|v|_1 / d * sign(v)`` for each tensor ``v`` (Karimireddy et al. 2019, Section 4).

    ``d`` is the tensor's number of entries, and the sign of zero is plus. Without error feedback, small entries are
    drowned by large ones: use ``sign+feedback``. Whole numbers of a stage before pass as they are.
    """

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        numbers, rest = apart(change)
        sizes = torch.stack([t.abs().flatten(1).mean(1) for t in numbers.values()], 1)
        return {"signs": packed(joined(numbers) >= 0), "sizes": sizes, **rest}, memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        numbers, _ = apart(like)
        sizes = payload["sizes"]
        if not bool((sizes >= 0).all()):
            raise PluresError("a change of signs has a negative size")
        flat = unpacked(payload["signs"], joined(numbers).shape[1]).to(sizes.dtype) * 2 - 1
        signs = parted(flat, numbers)
        found = {
            k: t * sizes[:, i].to(t.dtype).view(-1, *(1,) * (t.dim() - 1)) for i, (k, t) in enumerate(signs.items())
        }
        return {k: found[k] if k in found else payload[k] for k in like}
