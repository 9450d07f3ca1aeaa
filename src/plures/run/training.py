"""How clients work locally, and for how many rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol, runtime_checkable

from plures.errors import PluresError
from plures.method.optimizer import OPTIMIZERS, SGD, Optimizer
from plures.signature import checked

SCHEDULES = "a schedule from plures.run, such as Cosine() or Exponential(0.99)"
"""The expected type, as messages describe it."""


@runtime_checkable
class RateSchedule(Protocol):
    """Factor of the learning rate in a round."""

    def __call__(self, round: int, rounds: int) -> float: ...


@checked
@dataclass(frozen=True)
class Constant:
    """The same learning rate in all rounds."""

    def __call__(self, round: int, rounds: int) -> float:
        return 1.0


@checked
@dataclass(frozen=True)
class Exponential:
    """``gamma ** round``."""

    gamma: float = 0.99

    def __call__(self, round: int, rounds: int) -> float:
        return self.gamma**round


@checked
@dataclass(frozen=True)
class Cosine:
    """From 1 down to ``final`` along half a cosine (Loshchilov, Hutter 2017, without restarts)."""

    final: float = 0.0

    def __call__(self, round: int, rounds: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * round / max(rounds, 1))) / 2


@checked
@dataclass(frozen=True)
class Milestones:
    """Multiplied by ``gamma`` at each of the given rounds."""

    at: tuple[int, ...]
    gamma: float = 0.1

    def __call__(self, round: int, rounds: int) -> float:
        return self.gamma ** sum(round >= milestone for milestone in self.at)


RATE_SCHEDULES: Mapping[str, Callable[..., RateSchedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "exponential": Exponential,
    "milestones": Milestones,
}
"""Schedules of the learning rate by name."""


@checked
@dataclass(frozen=True)
class Training:
    """Local work of every client, unless a phase of the method says otherwise.

    Attributes:
        rounds: number of rounds.
        batch_size: examples in a batch; ``None`` for all of a client's examples (full-batch gradients).
        epochs: passes over a client's data in a visit; default: 1, unless ``steps`` are given.
        steps: number of gradient steps instead of epochs.
        optimizer: local optimizer; a fresh one for each phase of each visit. Its weight decay acts on slots that hold
            a model, or part of one, but not on other numbers that a method trains (mixing weights, input maps).
        schedule: factor of the learning rate over the rounds of training. It does not apply to work outside rounds:
            fine-tuning and calibration before predicting, and the visits of newcomers.
        clip: largest norm of each client's gradient. Each slot is clipped separately, so that models that are trained
            side by side do not influence each other. ``None`` for no clipping.

    Examples:
        >>> training = plures.Training(rounds=20, batch_size=None, steps=5)
        >>> training.steps, training.epochs
        (5, None)
    """

    rounds: int = 50
    batch_size: int | None = 32
    epochs: float | None = None
    steps: int | None = None
    optimizer: Annotated[Optimizer, OPTIMIZERS] = field(default_factory=SGD)
    schedule: Annotated[RateSchedule, SCHEDULES] = field(default_factory=Constant)
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise PluresError(f"rounds={self.rounds}: give 0 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise PluresError(f"batch_size={self.batch_size}: give at least 1, or None for full batches")
        if self.epochs is not None and self.steps is not None:
            raise PluresError(f"epochs={self.epochs:g}, steps={self.steps}: give one of the two")
        if self.passes < 0 or (self.steps is not None and self.steps < 0):
            raise PluresError(f"epochs={self.epochs}, steps={self.steps}: local work must not be negative")
        if self.clip is not None and not self.clip > 0:
            raise PluresError(f"clip={self.clip}: give a positive norm, or None for no clipping")

    @property
    def passes(self) -> float:
        """Passes over a client's data in a visit if no number of steps is given."""
        return 1.0 if self.epochs is None else self.epochs
