"""Components shared by several reference networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Literal

from torch import Tensor, nn

from plures.errors import PluresError, check_choice
from plures.models.network import with_roles

Features = tuple[int, ...]
"""Shape of one example."""
Norm = Literal["none", "batch", "group"]


class Tokens(nn.Embedding):
    """A vector for each number 0 to ``num_embeddings - 1``; refuses real inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(integers(input))


def integers(inputs: Tensor) -> Tensor:
    """Inputs as int64, if they are integers."""
    if inputs.is_floating_point():
        raise PluresError(f"the network reads integers (tokens, items, node features), but inputs are {inputs.dtype}")
    return inputs.long()


def split(body: Sequence[nn.Module], representation: int, outputs: int, **roles: tuple[str, ...]) -> nn.Module:
    """Body and linear head, marked; further roles name parts such as ``body.3``."""
    layers = OrderedDict[str, nn.Module](body=nn.Sequential(*body), head=nn.Linear(representation, outputs))
    return with_roles(nn.Sequential(layers), body="body", head="head", **roles)


def dense(*units: int) -> list[nn.Module]:
    """Linear layers, each followed by ReLU."""
    return [layer for pair in pairwise(units) for layer in (nn.Linear(*pair), nn.ReLU())]


def norm_layers(network: str, norm: Norm, channels: int, dims: int) -> list[nn.Module]:
    """The normalisation after a convolution over ``dims`` dimensions: none, or one layer (up to 4 groups)."""
    batch = nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d
    kinds: dict[str, list[nn.Module]] = {
        "none": [],
        "batch": [batch(channels)],
        "group": [nn.GroupNorm(gcd(4, channels), channels)],
    }
    check_choice(f"{network}: norm", norm, kinds)
    return kinds[norm]


def as_picture(features: Features) -> list[nn.Module]:
    """A layer that adds the channel axis, if examples lack it."""
    return [nn.Unflatten(1, (1, features[0]))] if len(features) == 2 else []


def is_picture(features: Features) -> bool:
    """``(channels, height, width)``, or ``(height, width)`` with no side more than twice the other."""
    return len(features) == 3 or (len(features) == 2 and max(features) <= 2 * min(features))


def check(network: str, features: Features, outputs: int, **sizes: int) -> None:
    """Refuse empty examples, no outputs, and options below 1."""
    if not features or min(features) < 1:
        raise PluresError(f"{network}: examples of shape {features} hold no number; give sizes of 1 or more")
    for name, size in {"outputs": outputs, **sizes}.items():
        if size < 1:
            raise PluresError(f"{network}: {name}={size}: give at least 1")


def picture(network: str, features: Features, outputs: int, smallest: int) -> tuple[int, int, int]:
    """``(channels, height, width)`` of pictures with or without channel axis."""
    check(network, features, outputs)
    if len(features) not in (2, 3) or min(features[-2:]) < smallest:
        raise PluresError(
            f"{network} reads pictures (height, width) or (channels, height, width) of at least "
            f"{smallest} x {smallest}; examples have shape {features}"
        )
    return (1, *features)[-3], features[-2], features[-1]


def tokens(network: str, features: Features, outputs: int, **sizes: int) -> int:
    """Length of examples that are sequences of integers."""
    check(network, features, outputs, **sizes)
    if len(features) != 1:
        raise PluresError(f"{network} reads sequences of integers (length,); examples have shape {features}")
    return features[0]
