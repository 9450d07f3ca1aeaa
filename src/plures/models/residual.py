"""Residual networks for small pictures, with or without squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from plures.errors import PluresError
from plures.models.parts import Features, Norm, as_picture, norm_layers, picture, split


class SqueezeExcitation(nn.Module):
    """A gate for each channel: ``x * s``, ``s = sigmoid(W2 relu(W1 mean(x)) + b)`` (Hu, Shen, Sun 2018, equation 3).

    Args:
        channels: of ``x``, ``(batch, channels, height, width)``.
        reduction: ``W1`` has ``channels / reduction`` rows, at least one.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze, self.excite = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (He et al. 2016, option A: strided, padded with zeros).

    With squeeze-and-excitation, the gate is the last before the addition (SE-ResNet, Hu et al. 2018, Figure 3).
    """

    def __init__(self, channels: int, filters: int, stride: int, norm: Norm, reduction: int | None) -> None:
        super().__init__()
        self.stride = stride
        self.convolutions = nn.Sequential(
            *(*_conv(channels, filters, norm, stride), nn.ReLU()),
            *_conv(filters, filters, norm),
        )
        self.se = nn.Identity() if reduction is None else SqueezeExcitation(filters, reduction)

    def forward(self, x: Tensor) -> Tensor:
        made = self.se(self.convolutions(x))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, made.shape[1] - x.shape[1]))
        return torch.relu(made + shortcut)


def resnet(
    features: Features,
    outputs: int,
    depth: int = 8,
    width: int = 16,
    norm: Norm = "group",
    se: bool = False,
    reduction: int = 4,
) -> nn.Module:
    """ResNet for small pictures (He, Zhang, Ren, Sun 2016, section 4.2): 3 stages of ``(depth - 2) / 6`` blocks.

    ``width``, twice and four times as many filters; stages two and three halve the sides; global average pooling,
    head. With ``norm="batch"`` and 20 layers, 269,722 parameters for ``(3, 32, 32)`` and ten classes. Group
    normalisation (Wu, He 2018; at most 4 groups) is the default, because it lets clients of a stack step together.

    Args:
        features: ``(height, width)`` or ``(channels, height, width)``, at least 8 x 8.
        outputs: number of outputs.
        depth: layers with weights: 8, 14, 20, 26, ...
        width: filters of the first stage.
        norm: after each convolution: ``group``, ``batch`` or ``none``.
        se: squeeze-and-excitation in each block; its parts have the role ``se``.
        reduction: of squeeze-and-excitation; Hu et al. use 16 for their far wider networks.
    """
    channels, _, _ = picture("resnet", features, outputs, smallest=8)
    if depth < 8 or depth % 6 != 2:
        raise PluresError(f"resnet: depth={depth}; give 8, 14, 20 or another 6 n + 2")
    if min(width, reduction) < 1:
        raise PluresError(f"resnet: width={width}, reduction={reduction}: give at least 1")
    start = [*as_picture(features), *_conv(channels, width, norm), nn.ReLU()]
    blocks: list[nn.Module] = []
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        for number in range((depth - 2) // 6):
            first = stage > 0 and number == 0
            fan_in, stride = (filters // 2, 2) if first else (filters, 1)
            blocks.append(Block(fan_in, filters, stride, norm, reduction if se else None))
    gates = tuple(f"body.{place}.se" for place in range(len(start), len(start) + len(blocks)))
    body = [*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return split(body, 4 * width, outputs, **({"se": gates} if se else {}))


def _conv(channels: int, filters: int, norm: Norm, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, with a bias if no normalisation follows."""
    convolution = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=norm == "none")
    return [convolution, *norm_layers("resnet", norm, filters, 2)]
