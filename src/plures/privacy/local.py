"""Local differential privacy: what a client says is noisy before it leaves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plures.codecs.packing import packed, unpacked
from plures.codecs.sparse import drawn
from plures.errors import PluresError
from plures.method import Leaves
from plures.method.response import Response, positive, response

__all__ = ["Response", "counted_answers", "duchi", "heard", "response", "said"]


def duchi(values: Tensor, epsilon: float, uniform: Tensor) -> Tensor:
    """One noisy bit for each number in [-1, 1], unbiased and ``epsilon``-private (Duchi, Jordan, Wainwright 2014).

    The answer is ``C`` with probability ``1/2 + x / (2 C)``, else ``-C``, with ``C = (e^eps + 1) / (e^eps - 1)``.

    Args:
        values: numbers in [-1, 1].
        epsilon: of each answer.
        uniform: random numbers in [0, 1), of the same shape.

    Raises:
        PluresError: if a number is outside.

    Examples:
        >>> duchi(torch.tensor([0.4, 0.4]), 1.0, torch.tensor([0.59, 0.60]))
        tensor([ 2.1640, -2.1640])
    """
    positive(epsilon)
    if not bool((values.abs() <= 1).all()):
        raise PluresError("values outside [-1, 1] are not private: clip or scale them first")
    size = (math.exp(epsilon) + 1) / math.expm1(epsilon)
    most = torch.full_like(values, size)
    return torch.where(uniform < 0.5 + values / (2 * size), most, -most)


OPTIMAL = 2.5
"""Epsilon of a single answer from which more answers with less epsilon each are better (Wang et al. 2019, eq. 12)."""


def counted_answers(epsilon: float, size: int) -> int:
    """How many of ``size`` numbers a client answers for, so that each answer has ``epsilon`` divided by their number.

    Examples:
        >>> [counted_answers(epsilon, 100) for epsilon in (1.0, 5.0, 8.0)]
        [1, 2, 3]
    """
    return max(1, min(size, int(epsilon / OPTIMAL)))


def said(numbers: Tensor, epsilon: float, keys: Tensor, coins: Tensor) -> Leaves:
    """Noisy bits of a few entries of each client's vector (Wang et al. 2019, ICDE, Algorithm 4, by Duchi's bits).

    Which entries are answered for says nothing about the vector; they follow from a seed that is sent with the bits.

    Args:
        numbers: ``(n, d)`` in [-1, 1].
        epsilon: of all answers of a client together.
        keys: ``(n,)`` int64 seeds.
        coins: ``(n, d)`` or more than enough columns of random numbers in [0, 1) that nobody else knows.
    """
    count = counted_answers(epsilon, numbers.shape[1])
    picked = numbers.double().gather(1, drawn(keys, numbers.shape[1], count))
    return {"bits": packed(duchi(picked, epsilon / count, coins[:, :count]) > 0), "seed": keys}


def heard(payload: Leaves, epsilon: float, size: int) -> Tensor:
    """``(n, d)`` double: vectors whose mean over all random numbers is what was answered for."""
    count = counted_answers(epsilon, size)
    each = epsilon / count
    most = (math.exp(each) + 1) / math.expm1(each) * size / count
    signs = 2 * unpacked(payload["bits"], count).double() - 1
    return signs.new_zeros(len(signs), size).scatter_(1, drawn(payload["seed"], size, count), most * signs)
