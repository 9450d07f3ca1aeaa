"""All members of a secure sum in one process: their secrets follow from a seed, so that a run can be repeated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from plures.secure.gather import remaining
from plures.secure.member import Member, Words, entropy


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
        self.threshold, self.seed = threshold, seed
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        self._publics = {number: self._member(name).public for name, number in self.numbers.items()}
        dealt = {number: self._member(name).deal(self._publics, threshold) for name, number in self.numbers.items()}
        self._sealed = {to: {by: boxes[to] for by, boxes in dealt.items() if to != by} for to in dealt}

    def masked(self, name: str, words: Words) -> Words:
        """What one of them sends."""
        return self._asked(name, words)[1]

    def remaining(self, came: Collection[str], count: int) -> Words:
        """The masks in the sum of the uploads that came, from what those who sent them reveal."""
        numbers = [self.numbers[name] for name in came]
        nothing = np.zeros(0, dtype=np.uint32)
        revealed = {self.numbers[name]: self._asked(name, nothing)[0].reveal(numbers) for name in came}
        return remaining(self._publics, self.numbers.values(), numbers, revealed, self.threshold, count)

    def _member(self, name: str) -> Member:
        """One of them before its first step: its secrets are always the same."""
        return Member(self.numbers[name], entropy(f"{self.seed}/{name}"))

    def _asked(self, name: str, words: Words) -> tuple[Member, Words]:
        """One of them after its upload, which may have been made in another process."""
        member = self._member(name)
        member.deal(self._publics, self.threshold)
        return member, member.masked(words, self._sealed[member.me])
