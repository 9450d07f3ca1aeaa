"""Sparse changes: some entries are sent, and the others are not."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from plures.codecs.packing import packed, unpacked
from plures.errors import PluresError
from plures.method import Codec, Leaves, Sending, joined, parted
from plures.models.layers import uniform


@dataclass(frozen=True)
class TopK(Codec):
    """The entries of largest magnitude of the whole change, all blocks joined; among equals, the first.

    They are sent with their places, or with one bit for every entry where that is shorter.

    Attributes:
        keep: how many, or a share of all entries below 1.
    """

    keep: int | float = 0.1

    def __post_init__(self) -> None:
        check_keep("TopK", self.keep)

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        flat = joined(change)
        entries = flat.shape[1]
        count = counted(self.keep, entries)
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
        count = counted(self.keep, entries)
        if count == entries:
            return parted(values, like)
        if by_place(count, entries):
            places = payload["places"].long()
            rising = bool((places.diff(dim=1) > 0).all())
            if not rising or not bool(((places >= 0) & (places < entries)).all()):
                raise PluresError(f"a sparse change names {count} places that are not different ones of {entries}")
        else:
            chosen = unpacked(payload["bits"], entries).bool()
            if not bool((chosen.sum(1) == count).all()):
                raise PluresError(f"a sparse change does not mark {count} of {entries} entries")
            places = chosen.nonzero()[:, 1].view(len(chosen), count)
        return parted(values.new_zeros(len(values), entries).scatter_(1, places, values), like)


def by_place(count: int, entries: int) -> bool:
    """Whether places of four bytes are shorter than a bit for every entry."""
    return 4 * count <= ceil(entries / 8)


@dataclass(frozen=True)
class RandomK(Codec):
    """Entries drawn at random, others in every round and client; the places follow from a seed that is sent with them.

    Attributes:
        keep: how many, or a share of all entries below 1.
        unbiased: whether they are multiplied by ``d / k``, so that the mean over draws is the change (Wangni et al.
            2018). With error feedback the change itself must be sent, ``unbiased=False`` (Stich et al. 2018).
    """

    keep: int | float = 0.1
    unbiased: bool = True

    def __post_init__(self) -> None:
        check_keep("RandomK", self.keep)

    @property
    def lengthens(self) -> bool:
        return self.unbiased

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        flat = joined(change)
        entries = flat.shape[1]
        count = counted(self.keep, entries)
        if count == entries:
            return {"values": flat}, memory
        return {"values": flat.gather(1, drawn(sending.keys, entries, count)), "seed": sending.keys}, memory

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        values, entries = payload["values"], joined(like).shape[1]
        count = counted(self.keep, entries)
        if count == entries:
            return parted(values, like)
        if self.unbiased:
            values = values * (entries / count)
        places = drawn(payload["seed"], entries, count)
        return parted(values.new_zeros(len(values), entries).scatter_(1, places, values), like)


def drawn(seeds: Tensor, entries: int, count: int) -> Tensor:
    """``(n, count)`` different places among ``entries``, each set as likely as any other, from seeds ``(n,)``."""
    return uniform(seeds.unsqueeze(1), entries).argsort(dim=1, stable=True)[:, :count]


def check_keep(stage: str, keep: int | float) -> None:
    """Refuse what is neither a number of entries nor a share of them."""
    if not keep > 0 or (keep >= 1 and int(keep) != keep):
        raise PluresError(f"{stage}: keep={keep}; give a number of entries, or a share of them below 1")


def counted(keep: int | float, entries: int) -> int:
    """Entries that are sent of so many."""
    return min(entries, int(keep) if keep >= 1 else max(1, round(keep * entries)))
