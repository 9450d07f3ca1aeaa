"""Randomised response: an answer that is noisy before it leaves a client."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plures.errors import PluresError


def positive(epsilon: float) -> None:
    """Refuse what is no epsilon."""
    if not 0 < epsilon < math.inf:
        raise PluresError(f"epsilon={epsilon}: give a positive number")


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
        positive(self.epsilon)
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
