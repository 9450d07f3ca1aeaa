"""Federated SimCLR: a body learned without labels, and personal heads."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plures.errors import PluresError
from plures.method import Batch, Method, Personal, Phase, Predict, Setting, Shared, State, body, head, role
from plures.method.representation import nt_xent, width
from plures.methods.entry import entry, require
from plures.models import Network
from plures.models.beside import beside

Augmentation = Callable[[Batch, int], Tensor]
"""``(batch, number) -> (batch, *features)``: inputs changed by ``batch.uniform(..., salt=number)``; number 0 or 1."""


def crops(batch: Batch, number: int, smallest: float = 0.5, contrast: float = 0.4) -> Tensor:
    """Images cropped at random, resized, mirrored with probability 1/2, and with random contrast.

    Args:
        batch: inputs ``(batch, height, width)`` or ``(batch, channels, height, width)``.
        number: of the view.
        smallest: side of the smallest crop, as a fraction of the image's.
        contrast: factors lie within ``1 - contrast`` and ``1 + contrast``.
    """
    pictures = batch.input.reshape(len(batch.input), -1, *batch.input.shape[-2:])
    size, across, down, mirror, factor = batch.uniform(len(pictures), 5, salt=number).unbind(1)
    size = smallest + (1 - smallest) * size
    high, wide = pictures.shape[-2:]
    x, y = ((2 * torch.arange(side, device=size.device) + 1) / side - 1 for side in (wide, high))
    at = torch.where(mirror < 0.5, -size, size).unsqueeze(1) * x + ((1 - size) * (2 * across - 1)).unsqueeze(1)
    to = size.unsqueeze(1) * y + ((1 - size) * (2 * down - 1)).unsqueeze(1)
    both = at.unsqueeze(1).expand(-1, high, -1), to.unsqueeze(2).expand(-1, -1, wide)
    grid = torch.stack(both, -1).to(pictures.dtype)
    cropped: Tensor = F.grid_sample(pictures, grid, align_corners=False)
    return (cropped * (1 + contrast * (2 * factor - 1)).view(-1, 1, 1, 1)).reshape(batch.input.shape)


def noise(batch: Batch, number: int, scale: float = 0.2, noise: float = 0.1, masked: float = 0.2) -> Tensor:
    """Inputs of any shape: each example scaled at random, noise added, and some entries set to 0.

    Args:
        batch: inputs ``(batch, *features)``, standardised.
        number: of the view.
        scale: factors lie within ``1 - scale`` and ``1 + scale``.
        noise: standard deviation of the uniform noise.
        masked: probability that an entry becomes 0.
    """
    flat = batch.input.flatten(1)
    factor = 1 + scale * (2 * batch.uniform(len(flat), 1, salt=3 * number) - 1)
    added = noise * 12**0.5 * (batch.uniform(*flat.shape, salt=3 * number + 1) - 0.5)
    kept = batch.uniform(*flat.shape, salt=3 * number + 2) >= masked
    changed: Tensor = (factor * flat + added) * kept
    return changed.reshape(batch.input.shape)


def suited(batch: Batch, number: int) -> Tensor:
    """:func:`crops` for images (no side more than twice the other), :func:`noise` for other real inputs."""
    if not batch.input.is_floating_point():
        raise PluresError("fedsimclr has no views of integer inputs (tokens): give your own, views=function")
    shape = batch.input.shape[1:]
    picture = len(shape) == 3 or (len(shape) == 2 and max(shape) <= 2 * min(shape))
    return crops(batch, number) if picture else noise(batch, number)


def projector(module: nn.Module, setting: Setting, size: int) -> nn.Module:
    """The model with a projection of the head's input: a linear layer of the same width, ReLU and a linear layer."""
    wide = width(Network(module), setting)
    return beside(module, "projection", nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, size)))


@entry(
    "Fed-SimCLR",
    "representation",
    "Chen, Kornblith, Norouzi, Hinton 2020, ICML, Algorithm 1, on federated clients",
    {"temperature": (0.1, 0.5, 1.0)},
)
def fedsimclr(
    temperature: float = 0.5, projection: int = 64, head_epochs: float = 10, views: Augmentation = suited
) -> Method:
    """A shared body trained without labels to match two views of an example; then each client trains its own head.

    Rounds minimise NT-Xent (:func:`~plures.method.representation.nt_xent`) of projections of ``h``, the head's input.
    The projection is the model's part with that role, or is added; body and projection are averaged, and the
    projection is not used to predict. Running statistics follow the examples, not their views. Before predicting, each
    client trains its head on the aggregated, fixed body.

    Args:
        temperature: divisor of the cosines.
        projection: size of an added projection; 0 compares ``h`` itself.
        head_epochs: passes that train the head.
        views: function that makes the two views; by default the one :func:`suited` to the inputs' shape.
    """
    require(temperature > 0 and projection >= 0, f"fedsimclr: temperature={temperature}, projection={projection}")
    require(head_epochs >= 0, f"fedsimclr: head_epochs={head_epochs} must not be negative")

    def agree(x: State, received: State, batch: Batch) -> Tensor:
        both = replace(batch, inputs=torch.cat([views(batch, 0), views(batch, 1)]))
        batch.see(x.model)
        codes = both.features(x.model, keep={})
        if projection:
            codes = batch.part("projection", x.model, codes)
        first, second = codes.flatten(1).chunk(2)
        return nt_xent(first, second, temperature, batch.weight)

    return Method(
        layout={head: Personal(), "model": Shared()},
        schedule=(Phase((body, role("projection")) if projection else body, agree, random=True),),
        predict=Predict("model", adapt=(Phase(head, epochs=head_epochs, stream="adapt"),)),
        adds={"projection": partial(projector, size=projection)} if projection else {},
    )
