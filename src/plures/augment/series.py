"""Numbers and series ``(channels, time)``: noise, scaling, time shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import Changed, Part
from plures.errors import PluresError
from plures.signature import checked


@checked
@dataclass(frozen=True)
class Noise(Part):
    """Independent Gaussian noise on every number.

    Attributes:
        std: its standard deviation, in units of the inputs.
    """

    name = "noise"
    std: float = 0.05

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        return inputs + self.std * key.normal(*inputs.shape[1:]).to(inputs.dtype), targets


@checked
@dataclass(frozen=True)
class Scale(Part):
    """Each channel times a Gaussian number of mean 1.

    Attributes:
        std: standard deviation of the factor.
    """

    name, reads = "scale", "series"
    std: float = 0.1

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        factor = 1 + self.std * key.normal(inputs.shape[1]).to(inputs.dtype)
        return inputs * factor.view(*factor.shape, *[1] * (inputs.dim() - 2)), targets


@checked
@dataclass(frozen=True)
class Shift(Part):
    """A move along time, the last axis, with zeros where nothing comes in.

    Attributes:
        steps: largest move, either way, in time steps.
    """

    name, reads, moves = "shift", "series", True
    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PluresError(f"shift: steps={self.steps}; give at least 1")

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        length = inputs.shape[-1]
        source = torch.arange(length, device=inputs.device) - key.integers(-self.steps, self.steps + 1)[:, None]
        index = source.clamp(0, length - 1).view(len(inputs), *[1] * (inputs.dim() - 2), length).expand_as(inputs)
        there = ((source >= 0) & (source < length)).view(len(inputs), *[1] * (inputs.dim() - 2), length)
        return inputs.gather(-1, index).masked_fill(~there, 0), targets
