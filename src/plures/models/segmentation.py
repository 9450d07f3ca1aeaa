"""A network with a label for every pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plures.models.network import with_roles
from plures.models.parts import Features, Norm, norm_layers, picture


class UNet(nn.Module):
    """One level down and up again, beside a path at full size; the labels of a pixel come from a 1x1 convolution.

    Args:
        channels: of the pictures.
        outputs: number of labels.
        width: channels at full size; twice as many at half size.
        norm: see :func:`unet`.
    """

    def __init__(self, channels: int, outputs: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.fine, self.coarse = _twice(channels, width, norm), _twice(width, 2 * width, norm)
        self.joined, self.head = _twice(3 * width, width, norm), nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x if x.dim() == 4 else x.unsqueeze(1))
        coarse = self.coarse(F.max_pool2d(fine, 2))
        wide = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self.head(self.joined(torch.cat([fine, wide], 1)))  # type: ignore[no-any-return]


def unet(features: Features, outputs: int, width: int = 16, norm: Norm = "group") -> nn.Module:
    """A small U-Net (Ronneberger, Fischer, Brox 2015) with two sizes: ``(batch, outputs, height, width)``.

    Args:
        features: ``(channels, height, width)`` or ``(height, width)``, of any size from 2 x 2.
        outputs: number of labels.
        width: channels at full size.
        norm: after each convolution: ``group`` (4 groups), ``batch`` or ``none``.

    Examples:
        >>> network = plures.models.unet((3, 32, 32), outputs=2)
        >>> network(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 2, 32, 32])
    """
    channels, _, _ = picture("unet", features, outputs, 2)
    return with_roles(UNet(channels, outputs, width, norm), head="head")


def _twice(inputs: int, outputs: int, norm: Norm) -> nn.Module:
    """Two 3x3 convolutions that keep the size."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), *norm_layers("unet", norm, outputs, 2), nn.ReLU()]
    return nn.Sequential(*layers)
