"""The hidden widths of a network as data: which entries of which leaves belong to which units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from plures.brief import brief
from plures.errors import PluresError

SLACK = 1e-9
"""Rounding of ``rate * width`` that does not count as one unit more."""


@dataclass(frozen=True)
class Width:
    """Units that several layers have in common.

    Attributes:
        name: the layer that computes them.
        size: their number.
        step: they are left out in multiples of this number (the channels of one group of a group normalisation).
        stuck: why no unit can be left out; empty if it can.
        least: below this rate no unit is held: the layers after an early exit.
    """

    name: str
    size: int
    step: int = 1
    stuck: str = ""
    least: float = 0.0

    def at(self, rate: float) -> int:
        """How many units a network has of which each width is ``rate`` times as large, rounded up."""
        if rate < self.least - SLACK:
            return 0
        return min(self.size, self.step * math.ceil(rate * self.size / self.step - SLACK))


@dataclass(frozen=True)
class Along:
    """An axis of a leaf along which units lie.

    Attributes:
        axis: the axis; ``None`` for a leaf that is held wholly, where the unit is, or not at all.
        width: position of their width.
        each: consecutive entries of each unit, for layers that read a flattened picture.
    """

    axis: int | None
    width: int
    each: int


@brief
@dataclass(frozen=True)
class Widths:
    """The hidden widths of a network.

    Attributes:
        widths: each of them.
        leaves: by path, the axes of the leaves that have any of these units.
        made: paths of the parameters of linear and convolutional layers that compute such units.
    """

    widths: tuple[Width, ...]
    leaves: Mapping[str, tuple[Along, ...]]
    made: frozenset[str]

    def only(self, chosen: Callable[[str], bool]) -> Widths:
        """Those whose units are computed by a chosen parameter, by its path.

        Raises:
            PluresError: if there are none, or units of one of them cannot be left out.
        """
        making = {along.width for path in self.made if chosen(path) for along in self.leaves[path] if along.axis == 0}
        kept = {old: new for new, old in enumerate(sorted(making))}
        for number in kept:
            if self.widths[number].stuck:
                raise PluresError(self.widths[number].stuck)
        if not kept:
            raise PluresError("the network has no hidden width to cut: give one with hidden layers, such as mlp")
        leaves = {
            path: tuple(replace(a, width=kept[a.width]) for a in axes if a.width in kept)
            for path, axes in self.leaves.items()
        }
        leaves = {path: axes for path, axes in leaves.items() if axes}
        made = frozenset(p for p in self.made if any(along.axis == 0 for along in leaves.get(p, ())))
        return Widths(tuple(self.widths[old] for old in kept), leaves, made)

    def at(self, rate: float) -> tuple[int, ...]:
        """The number of units of each width in a network of a rate."""
        return tuple(width.at(rate) for width in self.widths)
