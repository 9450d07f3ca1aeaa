"""A state that records which of its slots are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plures.models import Leaves


class Watched(Mapping[str, Leaves]):
    """Slots that record which of them are read.

    Attributes:
        read: names of the slots that were read.
    """

    def __init__(self, slots: Mapping[str, Leaves]) -> None:
        self._slots = slots
        self.read: set[str] = set()

    def __getitem__(self, slot: str) -> Leaves:
        leaves = self._slots[slot]
        self.read.add(slot)
        return leaves

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)
