"""Layers whose randomness is a pure function of a key, so that stacking clients cannot change it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

KEY = "dropout_key"
"""Name of the buffer that carries the key of one client's step into every dropout layer."""


def uniform(key: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) that depend on an int64 scalar ``key`` and their position alone.

    A 32-bit integer hash (two multiply-xorshift rounds) on int64 tensors, so that it maps, compiles and
    runs on every device with the same result.
    """
    mask = 0xFFFFFFFF
    z = (torch.arange(count, device=key.device) * 0x9E3779B1 + key) & mask
    for multiplier in (0x7FEB352D, 0x846CA68B):
        z = ((z ^ (z >> 16)) * multiplier) & mask
    z = z ^ (z >> 15)
    return (z >> 8).to(torch.float32) / float(1 << 24)


class KeyedDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask is drawn from a key passed with the leaves.

    A layer that one forward pass uses several times draws a new mask each time; ``calls`` counts them.

    Args:
        p: probability that a unit is dropped.
        salt: makes the masks of several layers differ.
        feature_dims: trailing dimensions that share one draw (0 for ``Dropout``, 2 for ``Dropout2d``).
    """

    dropout_key: Tensor

    def __init__(self, p: float, salt: int, feature_dims: int = 0) -> None:
        super().__init__()
        self.p, self.salt, self.feature_dims, self.calls = p, salt, feature_dims, 0
        self.register_buffer(KEY, torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        drawn = x.shape[: x.dim() - self.feature_dims]
        key = self.dropout_key + self.salt * 0x3C6EF372 + self.calls * 0x1B873593
        self.calls += 1
        keep = uniform(key, drawn.numel()).reshape(drawn) >= self.p
        keep = keep.reshape(drawn + (1,) * self.feature_dims)
        return x * keep.to(x.dtype) / (1.0 - self.p if self.p < 1.0 else 1.0)


_DROPOUT: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


def with_keyed_dropout(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` in which every dropout layer draws from its key."""
    clone = copy.deepcopy(module)
    layers = [(parent, name, child) for parent in clone.modules() for name, child in parent.named_children()]
    for salt, (parent, name, child) in enumerate(layers, start=1):
        if type(child) in _DROPOUT:
            assert isinstance(child.p, float)
            setattr(parent, name, KeyedDropout(child.p, salt, _DROPOUT[type(child)]))
    return clone
