"""Tokens: masking."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import Changed, Part
from plures.errors import PluresError
from plures.signature import checked


@checked
@dataclass(frozen=True)
class Mask(Part):
    """Each token replaced by one token with some probability.

    Attributes:
        share: the probability.
        token: the token that takes the place.
    """

    name, reads = "mask", "tokens"
    share: float
    token: int

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PluresError(f"mask: share={self.share:g}; give a probability between 0 and 1")

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        return inputs.masked_fill(key.uniform(*inputs.shape[1:]) < self.share, self.token), targets
