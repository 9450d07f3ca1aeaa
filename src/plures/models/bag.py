"""A linear layer on binary features of which only the active ones are listed, fast for one client and for a stack.

The layer sums the rows of its weight that an example lists. PyTorch's lookup copies all of these rows first, padding
included, and its gradient adds them one by one to the weight's. Here :class:`Sums` adds rows as they are read. Its
gradient is a sum of the same kind: that of a weight's row adds the slopes of all examples that list it, which sorting
the numbers brings together. Each of the two functions is the derivative of the other, to any order, and a stack of
clients is one client with as many times the features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plures.models.parts import integers

InDims = tuple[int | None, ...]


class Bag(nn.Module):
    """A linear layer on binary features, ``(..., F)`` numbers of the active ones -> ``(..., units)``.

    Numbers are 1 to ``vocabulary``; 0 and less are no feature. Weights are initialised as in Kipf, Welling 2017
    (Glorot, Bengio 2010), the bias to zero.
    """

    def __init__(self, vocabulary: int, units: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, units))
        self.bias = nn.Parameter(torch.empty(units)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, numbers: Tensor) -> Tensor:
        total = summed(self.weight, integers(numbers))
        return total if self.bias is None else total + self.bias


def summed(weight: Tensor, numbers: Tensor) -> Tensor:
    """Sums ``(..., units)`` of the rows of a weight ``(vocabulary, units)`` that ``(..., F)`` numbers name.

    A compiled or exported graph drops the rules of an ``autograd.Function``, and other devices have fast lookups.
    """
    if weight.device.type == "cpu" and not torch.compiler.is_compiling():
        return Sums.of(weight, numbers)
    rows = functional.embedding((numbers - 1).clamp(min=0), weight)
    return (rows * (numbers > 0).unsqueeze(-1)).sum(-2)


class Linear(torch.autograd.Function):
    """A function of a tensor, in which it is linear, and of numbers ``(..., F)``."""

    @classmethod
    def of(cls, *args: Any) -> Tensor:
        found: Tensor = cls.apply(*args)  # type: ignore[no-untyped-call]
        return found


class Sums(Linear):
    """``(weight, numbers) -> sums``; see :func:`summed`."""

    @staticmethod
    def forward(weight: Tensor, numbers: Tensor) -> Tensor:
        places, active = (numbers - 1).clamp(min=0).flatten(0, -2), (numbers > 0).to(weight.dtype).flatten(0, -2)
        found = functional.embedding_bag(places, weight, mode="sum", per_sample_weights=active)
        return found.view(*numbers.shape[:-1], weight.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, numbers = inputs
        ctx.save_for_backward(numbers)
        ctx.vocabulary = len(weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (numbers,) = ctx.saved_tensors
        return Slopes.of(slope, numbers, ctx.vocabulary), None

    @staticmethod
    def vmap(info: Any, places: InDims, weight: Tensor, numbers: Tensor) -> tuple[Tensor, int]:
        numbers = rows(numbers, places[1], info.batch_size)
        if places[0] is None:
            return Sums.of(weight, numbers), 0
        weight = weight.movedim(places[0], 0)
        return Sums.of(weight.flatten(0, 1), apart(numbers, weight.shape[1])), 0


class Slopes(Linear):
    """``(slope, numbers, vocabulary) -> the gradient of a weight``, from that of the sums ``(..., units)``."""

    @staticmethod
    def forward(slope: Tensor, numbers: Tensor, vocabulary: int) -> Tensor:
        listed = numbers.clamp(min=0).flatten()
        order = listed.int().argsort(stable=True)
        count = listed.new_zeros(vocabulary + 1).scatter_add_(0, listed, torch.ones_like(listed))
        examples = order.div(numbers.shape[-1], rounding_mode="trunc")
        found = functional.embedding_bag(examples, slope.flatten(0, -2), count.cumsum(0) - count, mode="sum")
        return found[1:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (numbers,) = ctx.saved_tensors
        return Sums.of(weight, numbers), None, None

    @staticmethod
    def vmap(info: Any, places: InDims, slope: Tensor, numbers: Tensor, vocabulary: int) -> tuple[Tensor, int]:
        clients = info.batch_size
        slope, numbers = (rows(t, place, clients) for t, place in zip((slope, numbers), places, strict=False))
        found = Slopes.of(slope, apart(numbers, vocabulary), clients * vocabulary)
        return found.view(clients, vocabulary, -1), 0


def rows(values: Tensor, place: int | None, clients: int) -> Tensor:
    """Values with the clients' axis first, or the same for all."""
    return values.expand(clients, *values.shape) if place is None else values.movedim(place, 0)


def apart(numbers: Tensor, vocabulary: int) -> Tensor:
    """Numbers ``(clients, ...)`` that name the rows of all clients' weights, one after the other."""
    first = torch.arange(0, len(numbers) * vocabulary, vocabulary, device=numbers.device)
    return torch.where(numbers > 0, numbers + first.view(-1, *[1] * (numbers.dim() - 1)), 0)
