"""Attacks on uploads, one short class each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.robust.krum import distances
from plures.threat.attack import Attack, Round

Direction = Literal["std", "unit", "sign"]


@dataclass(frozen=True)
class SignFlip(Attack):
    """The own change, turned around: ``-factor * change`` (Li et al. 2019, RSA; "bit flip" of Karimireddy et al. 2022).

    Attributes:
        factor: how far it goes.
    """

    factor: float = 1.0

    def forge(self, known: Round) -> Tensor:
        return -self.factor * known.own


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise instead of a change, as strong as the own change times ``factor`` in root mean square (Li et al. 2021, A2).

    Attributes:
        factor: how strong it is.
    """

    factor: float = 1.0

    def forge(self, known: Round) -> Tensor:
        return self.factor * known.own.square().mean(1, keepdim=True).sqrt() * known.normal()


@dataclass(frozen=True)
class Replacement(Attack):
    """Scale the own change so that the mean becomes the attacker's model (Bagdasaryan et al. 2020, equation 3).

    It succeeds exactly if the other clients stand still.

    Attributes:
        factor: factor of the change; default: the weight of all uploads divided by the attackers'.
    """

    factor: float | None = None

    def forge(self, known: Round) -> Tensor:
        factor = known.total / float(known.weight.sum()) if self.factor is None else self.factor
        return factor * known.own


@dataclass(frozen=True)
class ALIE(Attack):
    """The mean, moved by ``z`` standard deviations in every coordinate: a little is enough (Baruch et al. 2019).

    Attributes:
        z: standard deviations; default: the paper's, ``Phi^-1((n - m - s) / (n - m))`` with ``s = floor(n / 2 + 1) -
            m`` for ``m`` attackers among ``n``.
    """

    z: float | None = None

    def forge(self, known: Round) -> Tensor:
        z = inconspicuous(known.clients, len(known.own)) if self.z is None else self.z
        return (known.seen.mean(0) - z * deviation(known.seen)).expand_as(known.own).clone()


@dataclass(frozen=True)
class InnerProduct(Attack):
    """The mean, turned around: ``-epsilon * mean`` (Xie et al. 2020, inner-product manipulation).

    Attributes:
        epsilon: small, such as 0.1, it deceives medians; large, means.
    """

    epsilon: float = 0.1

    def forge(self, known: Round) -> Tensor:
        return (-self.epsilon * known.seen.mean(0)).expand_as(known.own).clone()


@dataclass(frozen=True)
class MinMax(Attack):
    """As far from the mean as no farther from any honest change than two of these are from each other.

    Shejwalkar and Houmansadr 2021, equation 4.

    Attributes:
        direction: where it goes: minus the standard deviations, minus the mean's direction, or minus its signs.
    """

    direction: Direction = "std"

    def forge(self, known: Round) -> Tensor:
        seen = known.seen
        apart = distances(seen)
        moved = farthest(seen, self.direction, lambda point: float((seen - point).square().sum(1).max() - apart.max()))
        return moved.expand_as(known.own).clone()


@dataclass(frozen=True)
class MinSum(Attack):
    """As :class:`MinMax`, for the sum of squared distances (Shejwalkar and Houmansadr 2021, equation 5).

    Attributes:
        direction: where it goes: minus the standard deviations, minus the mean's direction, or minus its signs.
    """

    direction: Direction = "std"

    def forge(self, known: Round) -> Tensor:
        seen = known.seen
        apart = distances(seen).sum(1)
        moved = farthest(seen, self.direction, lambda point: float((seen - point).square().sum() - apart.max()))
        return moved.expand_as(known.own).clone()


@dataclass(frozen=True)
class Mimic(Attack):
    """A copy of one honest client's change, whose data then count too much (Karimireddy et al. 2022, section 3.2).

    Of those that are known, it copies the one that lies farthest along the direction in which they differ most. The
    paper looks for it in a warm-up and then keeps to it; here every round chooses anew.
    """

    def forge(self, known: Round) -> Tensor:
        centred = known.seen - known.seen.mean(0)
        along = torch.linalg.svd(centred @ centred.T)[0][:, 0]
        return known.seen[int(along.abs().argmax())].expand_as(known.own).clone()


@dataclass(frozen=True)
class FreeRider(Attack):
    """Nothing is learned: what was received comes back, with a little noise that looks like work (Fraboni et al. 2021).

    Attributes:
        noise: its root mean square.
    """

    noise: float = 0.0

    def forge(self, known: Round) -> Tensor:
        return self.noise * known.normal()


def inconspicuous(clients: int, attackers: int) -> float:
    """The largest ``z`` with which ``attackers`` of ``clients`` have enough honest ones beyond them.

    Raises:
        PluresError: if attackers are so many that there is none.
    """
    honest, needed = clients - attackers, math.floor(clients / 2 + 1) - attackers
    if not 0 < (share := (honest - needed) / honest if honest else 0) < 1:
        raise PluresError(
            f"ALIE: with {attackers} attackers among {clients} clients there is no z to compute: give z=..."
        )
    return NormalDist().inv_cdf(share)


def deviation(seen: Tensor) -> Tensor:
    """``(d,)`` standard deviations, unbiased; 0 of a single row."""
    return seen.std(0) if len(seen) > 1 else torch.zeros_like(seen[0])


def farthest(seen: Tensor, direction: Direction, beyond: Callable[[Tensor], float]) -> Tensor:
    """The point farthest from the mean in a direction that is still within a bound.

    Args:
        seen: ``(k, d)`` honest changes.
        direction: name of the direction.
        beyond: positive for a point that is out of bounds.
    """
    mean = seen.mean(0)
    ways = {"std": deviation(seen), "unit": torch.nn.functional.normalize(mean, dim=0), "sign": mean.sign()}
    way = ways[direction]
    if not bool(way.any()):
        return mean
    low, high = 0.0, 1.0
    while beyond(mean - high * way) <= 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(mean - middle * way) > 0 else (middle, high)
    return mean - low * way
