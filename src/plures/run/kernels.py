"""Select kernels that can be mapped and differentiated twice, for modules that need them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from plures.run.convolution import Patches
from plures.run.execution import Precision

FEW = 16
"""Largest number of outputs for which products, softmax and their like are computed with outputs first on a CPU."""


class Thin(TorchFunctionMode):
    """A context for evaluation on a CPU in which few outputs of many examples are computed with outputs first.

    With 10 outputs and 784 inputs, MKL takes half the time for weights times examples than for examples times weights;
    softmax and cross-entropy of ten classes take a quarter.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.linear and len(args) + len(named) == 3:
            input, weight, bias = (*args, *named.values())
            if isinstance(bias, Tensor) and input.dim() == 2 and weight.shape[0] <= FEW:
                return torch.addmm(bias.unsqueeze(1), weight, input.t()).t()
        if func is F.cross_entropy and len(args) == 2 and named.get("reduction") == "none":
            input, target = args
            if input.dim() == 2 and target.dim() == 1 and input.shape[1] <= FEW:
                return func(input.t().unsqueeze(0), target.unsqueeze(0), **named).squeeze(0)
        if func is Tensor.softmax and args[1:] == (-1,) and not named:
            input = args[0]
            if input.dim() > 1 and input.shape[-1] <= FEW:
                return input.flatten(0, -2).t().softmax(0).t().unflatten(0, input.shape[:-1])
        if func is Tensor.argmax and args[1:] == (-1,) and not named:
            return args[0].contiguous().argmax(-1)
        return func(*args, **named)


def thin(module: nn.Module, device: str) -> contextlib.AbstractContextManager[Any]:
    """That context for a module to which it matters, on a device of this type."""
    return few(device, *(part.out_features for part in module.modules() if isinstance(part, nn.Linear)))


def few(device: str, *outputs: int) -> contextlib.AbstractContextManager[Any]:
    """That context for numbers of outputs of which it matters to one."""
    return Thin() if device == "cpu" and min(outputs, default=FEW + 1) <= FEW else contextlib.nullcontext()


def for_the_process(module: nn.Module) -> bool:
    """Whether kernels of a module are selected by settings of the whole process, which threads share."""
    return any(isinstance(part, nn.MultiheadAttention | nn.RNNBase) for part in module.modules())


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
