"""An auto-encoder whose code a classifier reads."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from plures.models.network import with_roles
from plures.models.parts import Features, as_picture, check, is_picture

FILTERS = (16, 32)
"""Filters of the two convolutions of the encoder."""


class AutoencoderClassifier(nn.Module):
    """``forward`` gives class scores, ``head(encoder(x))``; the decoder is for reconstruction."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))  # type: ignore[no-any-return]

    def reconstruct(self, x: Tensor) -> Tensor:
        """``decoder(encoder(x))``, of the shape of ``x``."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def autoencoder_classifier(features: Features, outputs: int, code: int = 32, hidden: int = 128) -> nn.Module:
    """An auto-encoder with a classifier on its code, for FedHome's GCAE (Wu, Chen, Zhou, Zhang 2020).

    Pictures and ``(channels, time)``: two 5-wide convolutions of stride 2 (16 and 32 filters), one linear layer to
    the code; the decoder mirrors them. Other shapes: one hidden layer on each side. The sizes are our choice.

    ``body`` is the encoder, ``head`` the linear classifier on the code ``(batch, code)``, and ``decoder`` maps codes
    to reconstructions of the inputs' shape; the forward pass does not call it.

    Args:
        features: shape of one example.
        outputs: number of classes.
        code: size of the code.
        hidden: hidden units, if there are no convolutions.
    """
    check("autoencoder_classifier", features, outputs, code=code, hidden=hidden)
    channelled = (1, *features) if is_picture(features) and len(features) == 2 else features
    if len(channelled) in (2, 3):
        encoder, decoder = _convolutional(channelled, code)
        if channelled != features:
            encoder, decoder = [*as_picture(features), *encoder], [*decoder, nn.Flatten(1, 2)]
    else:
        size = prod(features)
        encoder = [nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, code)]
        decoder = [nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Unflatten(1, features)]
    parts = nn.Sequential(*encoder), nn.Sequential(*decoder), nn.Linear(code, outputs)
    return with_roles(AutoencoderClassifier(*parts), body="encoder", head="head", decoder="decoder")


def _convolutional(features: Features, code: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Encoder and decoder of ``(channels, *sides)`` with one or two sides."""
    channels, *sides = features
    one = len(sides) == 1
    conv, transposed = (nn.Conv1d, nn.ConvTranspose1d) if one else (nn.Conv2d, nn.ConvTranspose2d)
    halves = [sides, [(side + 1) // 2 for side in sides], [(side + 3) // 4 for side in sides]]
    deep = (FILTERS[1], *halves[2])
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = [nn.Linear(code, prod(deep)), nn.ReLU(), nn.Unflatten(1, deep)]
    for fan_in, fan_out in ((channels, FILTERS[0]), FILTERS):
        encoder += [conv(fan_in, fan_out, 5, 2, 2), nn.ReLU()]
    for fan_in, fan_out, large in ((FILTERS[1], FILTERS[0], halves[1]), (FILTERS[0], channels, halves[0])):
        more: Any = tuple(1 - side % 2 for side in large)
        decoder += [transposed(fan_in, fan_out, 5, 2, 2, output_padding=more), nn.ReLU()]
    return [*encoder, nn.Flatten(), nn.Linear(prod(deep), code)], decoder[:-1]
