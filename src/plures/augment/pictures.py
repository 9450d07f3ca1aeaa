"""Pictures ``([channels,] height, width)``: crop, flip, rotation, brightness and contrast, cutout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from plures.augment.key import Key
from plures.augment.part import Changed, Part
from plures.errors import PluresError
from plures.signature import checked


def _four(inputs: Tensor) -> Tensor:
    """``(n, channels, height, width)``."""
    return inputs.reshape(len(inputs), -1, *inputs.shape[-2:])


@checked
@dataclass(frozen=True)
class Crop(Part):
    """Zeros around the picture, then a window of the picture's size at a random place.

    Attributes:
        padding: width of the border in pixels.
    """

    name, reads, moves = "crop", "pictures", True
    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise PluresError(f"crop: padding={self.padding}; give at least 1")

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        wide = functional.pad(_four(inputs), [self.padding] * 4)
        height, width = inputs.shape[-2:]
        top, left = key.integers(0, 2 * self.padding + 1, 2).unbind(1)
        rows = (top[:, None] + torch.arange(height, device=top.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=top.device))[:, None, None, :]
        cut = wide.gather(2, rows.expand(-1, wide.shape[1], -1, wide.shape[3]))
        return cut.gather(3, columns.expand(-1, wide.shape[1], height, -1)).reshape(inputs.shape), targets


@checked
@dataclass(frozen=True)
class Flip(Part):
    """Left and right exchanged with probability 1/2. Targets for each pixel are exchanged along with them.

    Attributes:
        vertical: whether top and bottom are exchanged with probability 1/2, too.
    """

    name, reads = "flip", "pictures"
    vertical: bool = False

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        both = [inputs, targets]
        for axis in (-1, -2) if self.vertical else (-1,):
            turned = key.integers(0, 2) == 1
            for place, values in enumerate(both):
                if values.dim() > 2 and values.shape[-2:] == inputs.shape[-2:]:
                    both[place] = torch.where(turned.view(-1, *[1] * (values.dim() - 1)), values.flip(axis), values)
        return both[0], both[1]


@checked
@dataclass(frozen=True)
class Rotate(Part):
    """A turn about the centre by a random angle, bilinear, with zeros from outside the picture.

    Attributes:
        degrees: largest angle, either way.
    """

    name, reads, moves = "rotate", "pictures", True
    degrees: float = 15.0

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        angles = key.uniform(low=-self.degrees, high=self.degrees) * (math.pi / 180)
        return rotated(_four(inputs), angles.to(inputs.dtype)).reshape(inputs.shape), targets


def rotated(pictures: Tensor, angles: Tensor) -> Tensor:
    """Pictures ``(n, channels, height, width)`` turned counterclockwise by angles ``(n,)`` in radians."""
    height, width = pictures.shape[-2:]
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    one = torch.stack([cos, -sin * (height / width), zero], 1)
    two = torch.stack([sin * (width / height), cos, zero], 1)
    grid = functional.affine_grid(torch.stack([one, two], 1), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", align_corners=False)


@checked
@dataclass(frozen=True)
class Jitter(Part):
    """Brightness and contrast: a picture ``x`` of mean ``m`` becomes ``m + c (x - m) + b``, not clipped.

    Attributes:
        brightness: ``b`` is uniform between minus this and this, in units of the inputs.
        contrast: ``c`` is uniform between 1 minus this and 1 plus this.
    """

    name, reads = "jitter", "pictures"
    brightness: float = 0.2
    contrast: float = 0.2

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        shape = (-1, *[1] * (inputs.dim() - 1))
        added = key.uniform(low=-self.brightness, high=self.brightness).to(inputs.dtype).view(shape)
        factor = key.uniform(low=1 - self.contrast, high=1 + self.contrast).to(inputs.dtype).view(shape)
        mean = inputs.flatten(1).mean(1).view(shape)
        return mean + factor * (inputs - mean) + added, targets


@checked
@dataclass(frozen=True)
class Cutout(Part):
    """A square of zeros whose centre is a random pixel (DeVries, Taylor 2017); it may reach over the border.

    Attributes:
        size: side of the square in pixels.
    """

    name, reads = "cutout", "pictures"
    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PluresError(f"cutout: size={self.size}; give at least 1")

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        inside = []
        for length in inputs.shape[-2:]:
            first = key.integers(0, length)[:, None] - self.size // 2
            place = torch.arange(length, device=first.device)
            inside.append((place >= first) & (place < first + self.size))
        hole = inside[0][:, :, None] & inside[1][:, None, :]
        return inputs.masked_fill(hole.view(len(inputs), *[1] * (inputs.dim() - 3), *hole.shape[1:]), 0), targets
