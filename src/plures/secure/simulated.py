"""All members of a secure sum in one process: their secrets follow from a seed, so that a run can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from plures.secure.gather import remaining
from plures.secure.member import Entropy, Member, Words


class Members:
    """The members of one round, who have exchanged their keys and shares.

    Keys, shares and masks are made as they are between sites. Only the secrets are not secret: they are a function of
    the run's seed.

    Args:
        names: of the clients that are asked.
        threshold: how many of them must stay to the end.
        seed: root of the secrets, another one in every round.
    """

    def __init__(self, names: Sequence[str], threshold: int, seed: str) -> None:
        self.threshold, self.numbers = threshold, {name: number for number, name in enumerate(names, 1)}
        self._members = {number: Member(number, entropy(f"{seed}/{name}")) for name, number in self.numbers.items()}
        self._publics = {number: member.public for number, member in self._members.items()}
        dealt = {number: member.deal(self._publics, threshold) for number, member in self._members.items()}
        self._sealed = {to: {by: boxes[to] for by, boxes in dealt.items() if to != by} for to in self._members}

    def masked(self, name: str, words: Words) -> Words:
        """What one of them sends."""
        number = self.numbers[name]
        return self._members[number].masked(words, self._sealed[number])

    def remaining(self, came: Collection[str], count: int) -> Words:
        """The masks in the sum of the uploads that came, from what those who sent them reveal."""
        numbers = [self.numbers[name] for name in came]
        revealed = {number: self._members[number].reveal(numbers) for number in numbers}
        return remaining(self._publics, self._members, numbers, revealed, self.threshold, count)


def entropy(seed: str) -> Entropy:
    """Bytes that follow from a seed, new ones in every call."""
    calls = iter(range(2**62))

    def drawn(count: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{next(calls)}".encode()).digest(count)

    return drawn
