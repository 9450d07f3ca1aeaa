"""Reference networks of the papers, with their body and head marked, and the list of all networks.

Every network takes the shape of one example and the number of outputs first, reads batches
``(batch, *features)`` and returns ``(batch, outputs)``. The ``head`` is the last part to run and reads one vector for
each example, everything before it is the ``body``; only :func:`logistic` and :func:`moe` have neither.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.autoencoder import autoencoder_classifier
from plures.models.graph import gcn, sage
from plures.models.mixture import moe
from plures.models.network import ModelFactory
from plures.models.parts import Features, Norm, as_picture, check, dense, is_picture, norm_layers, picture, split
from plures.models.ratings import ITEMS, matrix_factorization
from plures.models.residual import resnet
from plures.models.segmentation import unet
from plures.models.sequence import char_lstm, char_transformer
from plures.models.several import side_by_side
from plures.signature import shown
from plures.tasks import NextToken, Ratings, Segmentation

if TYPE_CHECKING:
    from plures.federation import Federation

SHORTEST = 36
"""Fewest samples for the convolutions and the pooling of :func:`har_cnn`."""


def logistic(features: Features, outputs: int) -> nn.Module:
    """Multinomial logistic regression, or linear regression: flatten, then one linear layer.

    No part is marked. A linear model has no representation: with the layer as ``head`` the ``body`` would be
    empty, FedPer would silently be local training and FedRep would have no body to train. So methods that split
    a model refuse this one and say why; use ``with_roles`` for the degenerate case.
    """
    check("logistic", features, outputs)
    layers = OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(prod(features), outputs))
    return nn.Sequential(layers)


def mlp(features: Features, outputs: int, hidden: Sequence[int] = (200,)) -> nn.Module:
    """Multilayer perceptron with ReLU on the flattened input.

    One hidden layer of 200 units is the network of IFCA on MNIST (Ghosh et al. 2020); ``(200, 200)``
    is the 2NN of McMahan et al. 2017; ``(512, 256, 64)`` is FedRep's for FEMNIST (Collins et al. 2021).

    Args:
        features: shape of one example.
        outputs: number of outputs.
        hidden: units of each hidden layer, at least one layer (without any it is :func:`logistic`).
    """
    check("mlp", features, outputs)
    if not hidden or min(hidden) < 1:
        raise PluresError(f"mlp: hidden={tuple(hidden)}: give the units of at least one layer, each 1 or more")
    return split([nn.Flatten(), *dense(prod(features), *hidden)], hidden[-1], outputs)


def fedavg_cnn(features: Features, outputs: int) -> nn.Module:
    """The CNN of FedAvg (McMahan et al. 2017) as in PFLlib's benchmark: two 5x5 convolutions without padding.

    conv 32, pool, conv 64, pool, linear 512, head. 582,026 parameters for ``(1, 28, 28)`` and ten classes, 878,538
    for ``(3, 32, 32)``. (The 1,663,370 of the paper come from convolutions padded to keep 28x28.)

    Args:
        features: ``(height, width)`` or ``(channels, height, width)``, at least 16 x 16.
        outputs: number of outputs.
    """
    channels, height, width = picture("fedavg_cnn", features, outputs, smallest=16)
    flat = 64 * _twice(height) * _twice(width)
    body = [*as_picture(features), *_conv(channels, 32), *_conv(32, 64), nn.Flatten(), *dense(flat, 512)]
    return split(body, 512, outputs)


def fedrep_cnn(features: Features, outputs: int) -> nn.Module:
    """FedRep's CNN for CIFAR (Collins et al. 2021): conv 64, conv 64 (5x5), linear 120 and 64, head.

    Each convolution is followed by ReLU and 2x2 pooling. 307,842 parameters for ``(3, 32, 32)`` and ten classes.

    Args:
        features: ``(height, width)`` or ``(channels, height, width)``, at least 16 x 16.
        outputs: number of outputs.
    """
    channels, height, width = picture("fedrep_cnn", features, outputs, smallest=16)
    flat = 64 * _twice(height) * _twice(width)
    body = [*as_picture(features), *_conv(channels, 64), *_conv(64, 64), nn.Flatten(), *dense(flat, 120, 64)]
    return split(body, 64, outputs)


def fedbn_cnn(features: Features, outputs: int, width: float = 1.0) -> nn.Module:
    """FedBN's CNN for digits (Li et al. 2021): conv 64, 64, 128 (5x5, padded), linear 2048 and 512, head.

    Batch normalisation follows every layer of the body, 2x2 pooling the first two convolutions. 14,219,210
    parameters for ``(3, 28, 28)`` and ten classes.

    Args:
        features: ``(height, width)`` or ``(channels, height, width)``, at least 4 x 4.
        outputs: number of outputs.
        width: factor of all layer widths; 0.25 has about a sixteenth of the parameters.
    """
    channels, high, wide = picture("fedbn_cnn", features, outputs, smallest=4)
    if not width > 0:
        raise PluresError(f"fedbn_cnn: width={width}: give a factor above 0, such as 0.25")
    first, second, third, fourth, fifth = (max(1, round(width * units)) for units in (64, 64, 128, 2048, 512))
    body: list[nn.Module] = [*as_picture(features)]
    for fan_in, fan_out in ((channels, first), (first, second), (second, third)):
        body += [nn.Conv2d(fan_in, fan_out, 5, padding=2), nn.BatchNorm2d(fan_out), nn.ReLU(), nn.MaxPool2d(2)]
    body[-1] = nn.Flatten()  # the third convolution is not pooled
    for fan_in, fan_out in ((third * (high // 4) * (wide // 4), fourth), (fourth, fifth)):
        body += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
    return split(body, fifth, outputs)


def har_cnn(features: Features, outputs: int, norm: Norm = "group", hidden: int = 64) -> nn.Module:
    """A small 1-D CNN for multichannel windows: two convolutions, one hidden layer, head.

    conv 32 (8 wide, stride 4), conv 32 (5 wide), pool 4, linear; 20,358 parameters for ``(9, 128)`` and six classes.
    Group normalisation (Wu, He 2018) is the default: with a learning rate of 0.05, federated averaging reaches 90 % on
    HAR in about 10 rounds with it and 85 % in 20 without; and unlike with batch normalisation, an example's output does
    not depend on its batch, so all clients of a stack step together.

    Args:
        features: ``(channels, time)``, at least 36 samples.
        outputs: number of outputs.
        norm: after each convolution: ``group`` (4 groups), ``batch`` or ``none``.
        hidden: units of the hidden layer.
    """
    check("har_cnn", features, outputs)
    if len(features) != 2 or features[1] < SHORTEST:
        raise PluresError(
            f"har_cnn reads (channels, time) with at least {SHORTEST} samples; examples have shape {features}"
        )
    channels, time = features
    body = [
        *(nn.Conv1d(channels, 32, 8, stride=4), *norm_layers("har_cnn", norm, 32, 1), nn.ReLU()),
        *(nn.Conv1d(32, 32, 5), *norm_layers("har_cnn", norm, 32, 1), nn.ReLU(), nn.MaxPool1d(4)),
        nn.Flatten(),
    ]
    length = ((time - 8) // 4 + 1 - 4) // 4
    return split([*body, *dense(32 * length, hidden)], hidden, outputs)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        network.__name__: network
        for network in (
            *(logistic, mlp, fedavg_cnn, fedrep_cnn, fedbn_cnn, har_cnn, resnet, unet),
            *(char_lstm, char_transformer, matrix_factorization, gcn, sage, autoencoder_classifier, moe),
        )
    }
)
"""The networks by name; each is called with ``(features, outputs)`` and its own options."""


def default_model(federation: Federation) -> ModelFactory:
    """A network that fits a federation's examples, as a factory.

    * ``(columns,)``: :func:`mlp` with 64 hidden units, not :func:`logistic`, so that methods with body and head run.
    * Pictures, ``(channels, height, width)`` or ``(height, width)`` with no side more than twice the other:
      :func:`fedavg_cnn`.
    * Other ``(channels, time)``: :func:`har_cnn`.
    * Tokens, ``(length,)`` integers, with the task ``next_token``: :func:`char_transformer`.
    * Pictures with a label for every pixel: :func:`unet`.
    * One item, ``(1,)`` an integer, with the task ``ratings``: :func:`matrix_factorization` of up to 9742 items.
    * Several inputs of real numbers: :func:`mlp` on all their numbers.
    * Inputs too small for these convolutions, or with more dimensions: :func:`mlp`.

    Examples:
        >>> network = plures.default_model(plures.load("heart"))()
        >>> network.head
        Linear(in_features=64, out_features=2, bias=True)
    """
    if not hasattr(federation, "features"):
        raise PluresError(f"default_model: federation={shown(federation)}; give a Federation")
    inputs, outputs = federation.inputs, federation.task.outputs
    if not isinstance(inputs, Tensor):
        names, numbers = tuple(inputs.parts), sum(prod(t.shape[1:]) for t in inputs.parts.values())
        if not all(t.is_floating_point() for t in inputs.parts.values()):
            raise PluresError(
                f"federation {federation.name!r} has several inputs, not all of real numbers, for which there is no "
                f"default model: give one whose forward takes {', '.join(names)}"
            )
        return partial(_mlp_of_several, names, numbers, outputs)
    features = tuple(inputs.shape[1:])
    if isinstance(federation.task, NextToken) and len(features) == 1 and not inputs.is_floating_point():
        if len(inputs) and int(inputs.max()) >= outputs:
            raise PluresError(
                f"federation {federation.name!r}: an input has token {int(inputs.max())}, but targets have {outputs} "
                f"tokens: give task=NextToken(vocabulary={int(inputs.max()) + 1})"
            )
        return partial(char_transformer, features, outputs, every_position=True)
    if isinstance(federation.task, Segmentation):
        if not inputs.is_floating_point() or not is_picture(features) or features[-2:] != federation.task.size:
            raise PluresError(
                f"federation {federation.name!r} has inputs {features} and a label for each of {federation.task.size}, "
                "for which there is no default model: give pictures of the size of their labels, or a model"
            )
        return partial(unet, features, outputs)
    if isinstance(federation.task, Ratings) and features == (1,) and not inputs.is_floating_point():
        if len(inputs) and int(inputs.max()) >= ITEMS:
            raise PluresError(
                f"federation {federation.name!r} has item {int(inputs.max())}, but the default network {ITEMS} items: "
                f"give matrix_factorization with items={int(inputs.max()) + 1}"
            )
        return partial(matrix_factorization, features, outputs)
    if not inputs.is_floating_point():
        raise PluresError(
            f"federation {federation.name!r} has integer inputs, for which there is no default model: give one, such "
            "as char_lstm or char_transformer (text), matrix_factorization (ratings), gcn or sage (graphs)"
        )
    seen = is_picture(features)
    if seen and min(features[-2:]) >= 16:
        return partial(fedavg_cnn, features, outputs)
    if len(features) == 2 and not seen and features[1] >= SHORTEST:
        return partial(har_cnn, features, outputs)
    return partial(mlp, features, outputs, (64,) if len(features) == 1 else (200,))


def _mlp_of_several(names: Sequence[str], numbers: int, outputs: int) -> nn.Module:
    return side_by_side(mlp((numbers,), outputs, (64,)), names)


def _conv(channels: int, filters: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, filters, 5), nn.ReLU(), nn.MaxPool2d(2)]


def _twice(side: int) -> int:
    """Side of a picture after two unpadded 5x5 convolutions, each with 2x2 pooling."""
    return ((side - 4) // 2 - 4) // 2
