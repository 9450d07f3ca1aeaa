"""Convolutions of stacked clients as batched products of patches.

When ``torch.func.vmap`` maps a convolution over its weights, the result is a grouped convolution, for which cuDNN runs
one small kernel per client. Here all clients' patches are copied side by side, and one batched product multiplies each
client's patches by its own weights.

A convolution is linear in its input and in its weights. So three functions are closed under differentiation: the
convolution, the gradient of its input and the gradient of its weights; each is the derivative of another, to any order.
Each has two forms: PyTorch's, for one client, and one for a stack, which ``vmap`` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as gradients
from torch.overrides import TorchFunctionMode

Sizes = Sequence[int]
InDims = tuple[int | None, ...]
Slopes = tuple[Tensor | None, ...]

# --- a stack of clients ------------------------------------------------------------------------------------------


def patches(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """What each output of a convolution reads, ``(clients, groups, n * outputs, kernel * channels / groups)``.

    Args:
        x: ``(clients, n, channels, *size)``.
        kernel, stride, padding, dilation, groups: of the convolution.
    """
    places = len(kernel)
    x = F.pad(x, [p for side in reversed(padding) for p in (side, side)]) if any(padding) else x
    for axis, (k, q, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=3):
        x = windows(x, axis, k, q, d)
    x = torch.unflatten(x, 2, (groups, -1))  # clients, n, groups, channels, *outputs, *kernel
    outputs, within = range(4, 4 + places), range(4 + places, 4 + 2 * places)
    rows, columns = x.shape[1] * prod(x.shape[4 : 4 + places]), x.shape[3] * prod(kernel)
    if x.shape[3] * kernel[-1] < x.shape[3 + places]:  # copy the longer runs of neighbours
        return x.permute(0, 2, *within, 3, 1, *outputs).reshape(len(x), groups, columns, rows).mT
    return x.permute(0, 2, 1, *outputs, *within, 3).reshape(len(x), groups, rows, columns)


def windows(x: Tensor, axis: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Windows along an axis, ``(..., kernel)``: views, or copies in a compiled graph, which can differentiate those."""
    reach = dilation * (kernel - 1) + 1
    if not torch.compiler.is_compiling():
        return x.unfold(axis, reach, stride)[..., ::dilation]
    count = (x.shape[axis] - reach) // stride + 1
    firsts = range(0, reach, dilation)
    each = [x[(slice(None),) * axis + (slice(f, f + stride * (count - 1) + 1, stride),)] for f in firsts]
    return torch.stack(each, -1)


def folded(parts: Tensor, n: int, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Tensor:
    """The adjoint of :func:`patches`: sums of overlapping patches, ``(clients, n, channels, *size)``.

    It works along one axis at a time, so that a 5 x 5 kernel takes ten additions instead of 25.
    """
    places = len(kernel)
    whole = [s + 2 * p for s, p in zip(size, padding, strict=True)]
    outputs = [(s - d * (k - 1) - 1) // q + 1 for s, k, q, d in zip(whole, kernel, stride, dilation, strict=True)]
    found = parts.reshape(*parts.shape[:2], n, *outputs, *kernel, -1)
    for place in range(places):
        axis, offsets = 3 + place, 3 + places
        if kernel[place] == stride[place] == 1:
            found = found.squeeze(offsets)
        else:
            shape = [*found.shape[:offsets], *found.shape[offsets + 1 :]]
            shape[axis] = whole[place]
            total = found.new_zeros(shape)
            step, span = stride[place], stride[place] * (outputs[place] - 1) + 1
            for number, part in enumerate(found.unbind(offsets)):
                first = number * dilation[place]
                total[(slice(None),) * axis + (slice(first, first + span, step),)].add_(part)
            found = total
        found = found.narrow(axis, padding[place], size[place])
    return found.permute(0, 2, 1, 3 + places, *range(3, 3 + places)).flatten(2, 3)


def grouped(slope: Tensor, groups: int) -> Tensor:
    """``(clients, n, filters, *outputs)`` as matrices ``(clients, groups, n * outputs, filters / groups)``."""
    slope = torch.unflatten(slope, 2, (groups, -1))
    return slope.permute(0, 2, 1, *range(4, slope.dim()), 3).flatten(2, -2)


def matrices(weight: Tensor, groups: int) -> Tensor:
    """Weights as matrices ``(clients, groups, kernel * channels / groups, filters / groups)``."""
    weight = torch.unflatten(weight, 1, (groups, -1))
    return weight.permute(0, 1, *range(4, weight.dim()), 3, 2).flatten(2, -2)


def stacked_convolution(
    x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """Convolutions ``(clients, n, filters, *outputs)`` without bias, each client with its own weights.

    Args:
        x: ``(clients, n, channels, *size)``.
        weight: ``(clients, filters, channels / groups, *kernel)``.
        stride, padding, dilation, groups: of the convolution.
    """
    kernel, places = weight.shape[3:], len(stride)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    outputs = [(s + 2 * p - r) // q + 1 for s, p, r, q in zip(x.shape[3:], padding, reach, stride, strict=True)]
    found = patches(x, kernel, stride, padding, dilation, groups) @ matrices(weight, groups)
    found = torch.unflatten(found, 2, (x.shape[1], *outputs))  # clients, groups, n, *outputs, filters
    return found.permute(0, 2, 1, 3 + places, *range(3, 3 + places)).flatten(2, 3)


def stacked_input(
    slope: Tensor, weight: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """Gradients of the inputs, of the given size, from those of the outputs."""
    parts = grouped(slope, groups) @ matrices(weight, groups).mT
    return folded(parts, slope.shape[1], size, weight.shape[3:], stride, padding, dilation)


def stacked_weight(
    slope: Tensor, x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """Gradients of each client's weights, of the given kernel's size, from those of the outputs."""
    found = patches(x, kernel, stride, padding, dilation, groups).mT @ grouped(slope, groups)
    found = torch.unflatten(found, 2, (*kernel, -1))  # clients, groups, *kernel, channels, filters
    last = found.dim() - 1
    return found.permute(0, 1, last, last - 1, *range(2, last - 1)).flatten(1, 2).contiguous()


# --- from one client to a stack ----------------------------------------------------------------------------------


def _rows(values: Tensor, place: int | None, clients: int) -> Tensor:
    return values.expand(clients, *values.shape) if place is None else values.movedim(place, 0)


def mapped(
    one: Callable[..., Tensor], many: Callable[..., Tensor], shared: bool, info: Any, places: InDims,
    first: Tensor, second: Tensor, *options: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    """The rule by which ``vmap`` maps a function of two tensors.

    Args:
        one: the function of one client.
        many: the function of a stack.
        shared: whether all clients' examples can be processed at once if they share the second tensor.
        info: ``vmap``'s information, such as the number of clients.
        places: the mapped axis of each argument.
        first, second, options: the arguments.
    """
    if shared and places[1] is None:
        rows = _rows(first, places[0], info.batch_size)
        return torch.unflatten(one(rows.flatten(0, 1), second, *options), 0, rows.shape[:2]), 0
    each = [_rows(t, place, info.batch_size) for t, place in zip((first, second), places, strict=False)]
    return many(*each, *options), 0


class Bilinear(torch.autograd.Function):
    """A function that is linear in each of its first two arguments."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    @classmethod
    def of(cls, *args: Any) -> Tensor:
        found: Tensor = cls.apply(*args)  # type: ignore[no-untyped-call]
        return found


class Convolution(Bilinear):
    """A convolution without bias: ``(n, channels, *size)`` with weights ``(filters, channels / groups, *kernel)``."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
    ) -> Tensor:
        apply: Callable[..., Tensor] = F.conv1d if len(stride) == 1 else F.conv2d
        return apply(x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Slopes:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            InputGradient.of(slope, weight, list(x.shape[2:]), *ctx.options) if needed[0] else None,
            WeightGradient.of(slope, x, list(weight.shape[2:]), *ctx.options) if needed[1] else None,
            *[None] * 4,
        )

    @staticmethod
    def vmap(info: Any, places: InDims, *args: Any) -> tuple[Tensor, int]:
        return mapped(Convolution.of, stacked_convolution, True, info, places, *args)


class InputGradient(Bilinear):
    """Gradient of the input, of the given size, from that of the outputs."""

    @staticmethod
    def forward(
        slope: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int],
        groups: int,
    ) -> Tensor:  # fmt: skip
        apply: Callable[..., Tensor] = gradients.conv1d_input if len(stride) == 1 else gradients.conv2d_input
        shape = [slope.shape[0], weight.shape[1] * groups, *size]
        return apply(shape, weight, slope, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Slopes:
        slope, weight = ctx.saved_tensors
        needed, (_, *options) = ctx.needs_input_grad, ctx.options
        return (
            Convolution.of(x, weight, *options) if needed[0] else None,
            WeightGradient.of(slope, x, list(weight.shape[2:]), *options) if needed[1] else None,
            *[None] * 5,
        )

    @staticmethod
    def vmap(info: Any, places: InDims, *args: Any) -> tuple[Tensor, int]:
        return mapped(InputGradient.of, stacked_input, True, info, places, *args)


class WeightGradient(Bilinear):
    """Gradient of the weights, of the given kernel's size, from that of the outputs."""

    @staticmethod
    def forward(
        slope: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
        groups: int,
    ) -> Tensor:  # fmt: skip
        apply: Callable[..., Tensor] = gradients.conv1d_weight if len(stride) == 1 else gradients.conv2d_weight
        shape = [slope.shape[1], x.shape[1] // groups, *kernel]
        return apply(x, shape, slope, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Slopes:
        slope, x = ctx.saved_tensors
        needed, (_, *options) = ctx.needs_input_grad, ctx.options
        return (
            Convolution.of(x, weight, *options) if needed[0] else None,
            InputGradient.of(slope, weight, list(x.shape[2:]), *options) if needed[1] else None,
            *[None] * 5,
        )

    @staticmethod
    def vmap(info: Any, places: InDims, *args: Any) -> tuple[Tensor, int]:
        return mapped(WeightGradient.of, stacked_weight, False, info, places, *args)


# --- where a module convolves ------------------------------------------------------------------------------------


class Patches(TorchFunctionMode):
    """A context in which 1-D and 2-D convolutions that ``torch.func.vmap`` maps are computed as products of patches.

    All others, including depthwise ones, stay PyTorch's own. The result of a product of patches has its channels last
    in memory. The derivative of cuDNN's batch normalisation asks for the format of its input, which ``vmap`` cannot
    tell, so that input is made contiguous.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv1d or func is F.conv2d:
            return convolved(func, 1 if func is F.conv1d else 2, *args, **(kwargs or {}))
        if func is F.batch_norm and args:
            args = args[0].contiguous(), *args[1:]
        return func(*args, **(kwargs or {}))


def convolved(
    plain: Callable[..., Tensor],
    places: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sizes = 1,
    padding: int | Sizes | str = 0,
    dilation: int | Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with the arguments of ``F.conv1d`` or ``F.conv2d``.

    Args:
        plain: ``F.conv1d`` or ``F.conv2d``.
        places: number of the kernel's axes.
        input, weight, bias, stride, padding, dilation, groups: its arguments.
    """
    depthwise = groups > 1 and weight.shape[1] == 1
    steps, spread = _each(stride, places), _each(dilation, places)
    refused = isinstance(padding, str) and padding != "valid" and (padding != "same" or steps != [1] * places)
    if depthwise or refused or not weight.is_floating_point():
        return plain(input, weight, bias, stride, padding, dilation, groups)
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        input, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (input, weight))
        bias = None if bias is None else bias.to(input.dtype)
    sides = [0] * places
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
        sides = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            input = F.pad(input, [extra for total in reversed(totals) for extra in (0, total % 2)])
    elif not isinstance(padding, str):
        sides = _each(padding, places)
    one = input.dim() == places + 1
    x = input.unsqueeze(0) if one else input
    if torch.compiler.is_compiling():  # graphs drop the vmap rules of an autograd.Function: differentiate the product
        found = stacked_convolution(x.unsqueeze(0), weight.unsqueeze(0), steps, sides, spread, groups).squeeze(0)
    else:
        found = Convolution.of(x, weight, steps, sides, spread, groups)
    if bias is not None:
        found = found + bias.view(-1, *[1] * places)
    return found.squeeze(0) if one else found


def _each(value: int | Sizes, places: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * places if len(values) == 1 else values
