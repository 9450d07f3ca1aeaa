"""A simulated processor rounding by shape: ``pytest --other-processor`` finds tests that rely on one processor's bits.

Every rounded result is moved by up to three units in its last place, in the same way for the same kernel, the same
shapes and the same place in them. So equal arithmetic on equal shapes gives equal bits, and nothing else does. Results
that every order of summation gives stay: short binary fractions, and sums of at most one term.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "bmm", "mv", "dot"}
ADDED_PRODUCTS = {"addmm", "baddbmm", "addmv"}
ROUNDED = {
    *(
        "convolution",
        "convolution_backward",
        "mean",
        "sum",
        "var",
        "var_mean",
        "std",
        "linalg_vector_norm",
        "logsumexp",
    ),
    *(
        "_softmax",
        "_log_softmax",
        "_softmax_backward_data",
        "_log_softmax_backward_data",
        "exp",
        "log",
        "log1p",
        "tanh",
    ),
    *("sigmoid", "softplus", "gelu", "native_layer_norm", "native_layer_norm_backward", "native_batch_norm", "cumsum"),
    *("native_batch_norm_backward", "_native_batch_norm_legit", "sin", "cos", "pow", "rsqrt", "nll_loss_forward"),
    *("addcmul", "addcdiv", "lerp", "_cdist_forward", "index_add", "embedding_dense_backward", "mse_loss"),
}
SHORT = {torch.float32: 2.0**10, torch.float64: 2.0**24}


def single(name: str, args: tuple[Any, ...]) -> Tensor | bool:
    """Where a sum has at most one term that is not zero."""
    if name in PRODUCTS:
        return torch.matmul((args[0] != 0).double(), (args[1] != 0).double()) <= 1
    if name in ADDED_PRODUCTS:
        return torch.matmul((args[1] != 0).double(), (args[2] != 0).double()) + (args[0] != 0) <= 1
    if name == "sum":
        return torch.sum((args[0] != 0).double(), *args[1:]) <= 1
    return False


def moved(value: Tensor, key: tuple[object, ...], keep: Tensor | bool) -> None:
    """Move a result by some units in its last place, in place."""
    random = np.random.default_rng(zlib.crc32(repr(key).encode()))
    units = torch.from_numpy(random.integers(-3, 4, size=tuple(value.shape))).to(value.dtype)
    scaled = value * SHORT[value.dtype]
    exact = (scaled == scaled.round()) | ~value.isfinite() | keep
    value.copy_(torch.where(exact, value, value * (1 + units * torch.finfo(value.dtype).eps)))


class OtherProcessor(TorchDispatchMode):
    """Kernels round by their name, their shapes and the place of a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in PRODUCTS | ADDED_PRODUCTS | ROUNDED:
            shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            keep = single(name, args)
            for number, value in enumerate(tree_leaves(out)):
                if type(value) is Tensor and value.device.type == "cpu" and value.dtype in SHORT:
                    moved(value, (name, number, *shapes), keep)
        return out
