"""Select kernels that can be mapped and differentiated twice, for modules that need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plures.run.convolution import Patches
from plures.run.execution import Precision


@contextlib.contextmanager
def kernels(module: nn.Module, precision: Precision, device: str, *, patches: bool = False) -> Iterator[None]:
    """A context in which a module runs with such kernels.

    Args:
        module: the network.
        precision: mixed precision for ``bfloat16``.
        device: type of the device.
        patches: convolve by products of patches.
    """
    kinds = {type(part) for part in module.modules()}
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(factors(rounded=precision == "tf32"))
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(device, torch.bfloat16, cache_enabled=False))
        if patches:
            stack.enter_context(Patches())
        if any(issubclass(kind, nn.MultiheadAttention) for kind in kinds):
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(issubclass(kind, nn.RNNBase) for kind in kinds):
            onednn = torch.backends.mkldnn
            stack.callback(setattr, onednn, "enabled", onednn.enabled)
            onednn.enabled = False  # type: ignore[assignment]
        yield


@contextlib.contextmanager
def factors(*, rounded: bool) -> Iterator[None]:
    """A context in which the factors of products in single precision are rounded to TF32, or are not.

    PyTorch has older and newer settings for this, and reading the older ones may fail; by default it rounds in
    convolutions. Both are set here, and restored afterwards.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    newer = [matmul, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    with contextlib.ExitStack() as stack:
        for owner in newer:
            stack.callback(setattr, owner, "fp32_precision", owner.fp32_precision)
        for older in (matmul, cudnn):
            with contextlib.suppress(RuntimeError):
                stack.callback(setattr, older, "allow_tf32", older.allow_tf32)
                older.allow_tf32 = rounded
        for owner in newer:
            owner.fp32_precision = "tf32" if rounded else "ieee"
        yield
