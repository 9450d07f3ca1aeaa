"""Qsparse-local-SGD: the largest entries of a change, quantized, with the error kept for the next round."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Channel, Codec, Cohort, Leaves, Line, Sending, Wire, joined, lay, parted


def qsparse(keep: int | float | None, levels: int | None = None, first: Wire = ()) -> Feedback:
    """``Q(Top_k)`` of change plus memory with error feedback (Basu, Data, Karakus, Diggavi 2020, Algorithm 1).

    Args:
        keep: entries that are sent: how many, or a share of them below 1; ``None`` for all.
        levels: of the stochastic quantizer; ``None`` for none.
        first: stages before both, such as ``(Clip(1.0),)``.
    """
    sparse = () if keep is None else (TopK(keep),)
    return Feedback((*first, *sparse, *(() if levels is None else (Quantize(levels),))))


@dataclass(frozen=True)
class Feedback(Codec):
    """Error feedback: what stages leave out of a change, the client adds to its next one.

    ``sent = Q(m + d)``, ``m <- m + d - sent``, so that all that was sent and the memory sum up to all changes. The
    memory of a client that is seldom drawn is as old as its last visit.

    Attributes:
        stages: what encodes ``m + d``.
    """

    stages: Wire

    def __post_init__(self) -> None:
        if summing := next((type(stage).__name__ for stage in self.stages if stage.sums), None):
            raise PluresError(
                f"Feedback: nobody can decode a single payload of {summing}, so no client knows its error"
            )

    def start(self, change: Leaves) -> Leaves:
        inner = self.inner(change).memory
        return {f"error:{k}": torch.zeros_like(t) for k, t in change.items()} | {f"in:{k}": t for k, t in inner.items()}

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        line = self.inner({k: torch.zeros_like(t[:1]) for k, t in change.items()})
        whole = {k: memory[f"error:{k}"] + d for k, d in change.items()}
        own = {k.removeprefix("in:"): t for k, t in memory.items() if k.startswith("in:")}
        payload, own = line.encode(whole, own, sending)
        sent = line.decode(payload)
        errors = {f"error:{k}": t - sent[k] for k, t in whole.items()}
        return payload, errors | {f"in:{k}": t for k, t in own.items()}

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        return self.inner(like).decode(payload)

    def inner(self, change: Leaves) -> Line:
        """The stages, laid for a change ``(1, ...)``."""
        return lay(self.stages, change)

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        for stage in self.stages:
            change = stage.release(change, total, cohort)
        return change

    def refusal(self, channel: Channel) -> str | None:
        return next((reason for stage in self.stages if (reason := stage.refusal(channel))), None)

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        for stage in self.stages:
            values = stage.beside(channel, values, sending)
        return values


@dataclass(frozen=True)
class TopK(Codec):
    """The entries of largest magnitude of the whole change, all blocks joined; among equals, the first.

    They are sent with their places, or with one bit for every entry where that is shorter.

    Attributes:
        keep: how many, or a share of all entries below 1.
    """

    keep: int | float = 0.1

    def __post_init__(self) -> None:
        if not self.keep > 0 or (self.keep >= 1 and int(self.keep) != self.keep):
            raise PluresError(f"TopK: keep={self.keep}; give a number of entries, or a share of them below 1")

    def count(self, entries: int) -> int:
        """Entries that are sent of so many."""
        return min(entries, int(self.keep) if self.keep >= 1 else max(1, round(self.keep * entries)))

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        flat = joined(change)
        entries = flat.shape[1]
        count = self.count(entries)
        order = flat.abs().sort(dim=1, descending=True, stable=True).indices
        places = order[:, :count].sort(1).values
        values = {"values": flat.gather(1, places)}
        if count == entries:
            return values, memory
        if by_place(count, entries):
            return values | {"places": places.to(torch.int32)}, memory
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True)
        return values | {"bits": packed(chosen)}, memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        values, entries = payload["values"], joined(like).shape[1]
        count = self.count(entries)
        if count == entries:
            return parted(values, like)
        if by_place(count, entries):
            places = payload["places"].long()
            rising = bool((places.diff(dim=1) > 0).all())
            if not rising or not bool(((places >= 0) & (places < entries)).all()):
                raise PluresError(f"a sparse change names {count} places that are not different ones of {entries}")
        else:
            chosen = unpacked(payload["bits"], entries)
            if not bool((chosen.sum(1) == count).all()):
                raise PluresError(f"a sparse change does not mark {count} of {entries} entries")
            places = chosen.nonzero()[:, 1].view(len(chosen), count)
        return parted(values.new_zeros(len(values), entries).scatter_(1, places, values), like)


def by_place(count: int, entries: int) -> bool:
    """Whether places of four bytes are shorter than a bit for every entry."""
    return 4 * count <= ceil(entries / 8)


def packed(bits: Tensor) -> Tensor:
    """Boolean ``(n, d)`` as bytes ``(n, ceil(d / 8))``."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(len(bits), -1, 8) * powers).sum(-1, dtype=torch.uint8)


def unpacked(found: Tensor, entries: int) -> Tensor:
    """The inverse of :func:`packed`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=found.device)
    return ((found.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)[:, :entries]


@dataclass(frozen=True)
class Quantize(Codec):
    """Stochastic quantization of all numbers, as one vector ``v`` for each client (Alistarh et al. 2017, QSGD).

    ``|v| sign(v_j) level / s``, where ``level`` is ``s |v_j| / |v|`` rounded up or down at random, so that the mean is
    ``v``. The norm and whole levels are sent: of one byte up to ``s = 127``, of two beyond. Whole numbers of a stage
    before, such as places, pass as they are. A change may become longer: clip it first, and the server clips what it
    decodes.

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
        kind = torch.int8 if self.levels <= 127 else torch.int16
        return {"levels": levels.to(kind), "norm": norm[:, 0], **rest}, memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        numbers, rest = apart(like)
        if bool((payload["levels"].long().abs() > self.levels).any()) or not bool((payload["norm"] >= 0).all()):
            raise PluresError(f"a quantized change has a level beyond {self.levels} or a negative norm")
        flat = payload["levels"].to(payload["norm"].dtype) * payload["norm"].unsqueeze(1) / self.levels
        found = parted(flat, numbers) | {k: payload[k] for k in rest}
        return {k: found[k] for k in like}


def apart(leaves: Leaves) -> tuple[Leaves, Leaves]:
    """Leaves of floating point, and the others."""
    numbers = {k: t for k, t in leaves.items() if t.is_floating_point()}
    return numbers, {k: t for k, t in leaves.items() if k not in numbers}
