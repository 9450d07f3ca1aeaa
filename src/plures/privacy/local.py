"""Local differential privacy: what a client says is noisy before it leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plures.errors import PluresError


def _check(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise PluresError(f"epsilon={epsilon}: give a positive number")


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
    _check(epsilon)
    if not bool((values.abs() <= 1).all()):
        raise PluresError("values outside [-1, 1] are not private: clip or scale them first")
    size = (math.exp(epsilon) + 1) / math.expm1(epsilon)
    most = torch.full_like(values, size)
    return torch.where(uniform < 0.5 + values / (2 * size), most, -most)


@dataclass(frozen=True)
class Response:
    """Randomised response with ``k`` answers: the true one with probability ``e^eps / (e^eps + k - 1)``, else another.

    Attributes:
        epsilon: of each answer.
        answers: ``k``.
    """

    epsilon: float
    answers: int

    def __post_init__(self) -> None:
        _check(self.epsilon)
        if self.answers < 2:
            raise PluresError(f"answers={self.answers}: give at least 2")

    @property
    def keep(self) -> float:
        """Probability of the true answer."""
        return 1 / (1 + (self.answers - 1) * math.exp(-self.epsilon))

    @property
    def other(self) -> float:
        """Probability of each other answer."""
        return (1 - self.keep) / (self.answers - 1)

    def shares(self, said: Tensor) -> Tensor:
        """``(k,)`` unbiased shares of the true answers, from what was said ``(n,)``; single ones may be negative."""
        seen = torch.bincount(said, minlength=self.answers).double() / len(said)
        return (seen - self.other) / (self.keep - self.other)

    def variance(self, share: float, count: int) -> float:
        """Variance of an estimated share from so many people, drawn at random from many of whom this share is true."""
        said = self.other + share * (self.keep - self.other)
        return said * (1 - said) / (count * (self.keep - self.other) ** 2)


def response(labels: Tensor, way: Response, uniform: Tensor) -> Tensor:
    """Noisy answers in the place of true ones.

    Args:
        labels: ``(n,)`` int64, from 0 to ``k - 1``.
        way: epsilon and number of answers.
        uniform: ``(n,)`` random numbers in [0, 1).
    """
    if not bool(((labels >= 0) & (labels < way.answers)).all()):
        raise PluresError(f"answers must be whole numbers from 0 to {way.answers - 1}")
    step = ((uniform.double() - way.keep) / way.other).clamp(min=0).long().clamp(max=way.answers - 2)
    return torch.where(uniform < way.keep, labels, (labels + 1 + step) % way.answers)
