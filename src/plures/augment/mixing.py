"""Mixtures of two examples of a client."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import Changed, Mixture, Part
from plures.errors import PluresError
from plures.signature import checked

TRIES = 32
LEAST = 2.0**-20
"""Smallest share, so that each of the two examples counts."""


@checked
@dataclass(frozen=True)
class Mixup(Part):
    """Each example becomes ``s x + (1 - s) x'`` with another one of its batch (Zhang, Cisse, Dauphin, Lopez-Paz 2018).

    Its loss is ``s`` times that for its own target and ``1 - s`` times that for the other's. The shares ``s`` of the
    examples of a batch are independent.

    Attributes:
        alpha: ``s`` has the distribution Beta(alpha, alpha); in (0, 1].
    """

    name = "mixup"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise PluresError(f"mixup: alpha={self.alpha:g}; give a number in (0, 1]")

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        share = beta(key, self.alpha).clamp(LEAST, 1 - LEAST).to(inputs.dtype)
        wide = share.view(-1, *[1] * (inputs.dim() - 1))
        return Mixture(wide * inputs + (1 - wide) * inputs[key.partner], targets, targets[key.partner], share)


def beta(key: Key, alpha: float) -> Tensor:
    """Numbers of the distribution Beta(alpha, alpha), ``(n,)`` float64 (Jöhnk 1964), for alpha up to 1."""
    one, two = ((key.uniform(TRIES).double() + 2.0**-25) ** (1 / alpha) for _ in range(2))
    fine = (one + two <= 1).double()
    first = fine.argmax(1, keepdim=True)
    x, y = one.gather(1, first), two.gather(1, first)
    return (x / (x + y)).squeeze(1)
