"""Mixtures of experts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.network import with_roles
from plures.models.parts import Features, check, dense


class MixtureOfExperts(nn.Module):
    """``y = sum_k softmax(g(x))_k e_k(x)`` (Jacobs, Jordan, Nowlan, Hinton 1991, equation 1.1).

    Args:
        experts: the e_k, with outputs of the same shape.
        gate: g, with one output for each expert.
    """

    def __init__(self, experts: Sequence[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.experts, self.gate = nn.ModuleList(experts), gate

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        if weights.shape[-1] != len(self.experts):
            raise PluresError(
                f"the gate gives {weights.shape[-1]} numbers for {len(self.experts)} experts: give one for each"
            )
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights.view(len(weights), *(1,) * (outputs.dim() - 2), -1)).sum(-1)  # type: ignore[no-any-return]


def mixture_of_experts(experts: Sequence[nn.Module], gate: nn.Module) -> nn.Module:
    """A mixture of copies of the given networks; roles ``experts`` and ``gate``, without a head.

    Args:
        experts: networks ``(batch, *features) -> (batch, outputs)``.
        gate: a network ``(batch, *features) -> (batch, number of experts)``; its outputs are the logits.
    """
    if not experts:
        raise PluresError("mixture_of_experts: give at least one expert")
    copies = [copy.deepcopy(expert) for expert in experts]
    return with_roles(MixtureOfExperts(copies, copy.deepcopy(gate)), experts="experts", gate="gate")


def moe(features: Features, outputs: int, experts: int = 4, hidden: int = 64) -> nn.Module:
    """A mixture of perceptrons with one hidden layer, and a linear gate, all on the flattened input.

    Args:
        features: shape of one example.
        outputs: number of outputs.
        experts: number of experts.
        hidden: hidden units of each expert.
    """
    check("moe", features, outputs, experts=experts, hidden=hidden)
    size = prod(features)
    perceptrons = [
        nn.Sequential(nn.Flatten(), *dense(size, hidden), nn.Linear(hidden, outputs)) for _ in range(experts)
    ]
    return mixture_of_experts(perceptrons, nn.Sequential(nn.Flatten(), nn.Linear(size, experts)))
