"""Poisoned data: what attackers train on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation import Federation, Inputs
from plures.tasks import Classification


class Poison:
    """A change of the training examples of attackers."""

    def refusal(self, federation: Federation) -> str | None:
        """Why a federation cannot be poisoned in this way; ``None`` if it can."""
        return None if isinstance(federation.task, Classification) else "it needs classes"

    def fitted(self, federation: Federation) -> Poison:
        """The poison with what it takes from the clean data of a federation; by default as it is."""
        return self

    def of(self, place: int) -> Poison:
        """The poison of one attacker, by its place among them; by default the same for all."""
        return self

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The poisoned examples of one attacker.

        Args:
            inputs: ``(n, *features)``.
            targets: ``(n,)`` classes.
            classes: number of classes.
            random: random numbers.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Targeted(Poison):
    """A change that teaches models to give some inputs a class of the attackers' choice.

    Attributes:
        target: the class, by number.
    """

    target: int = field(default=0, kw_only=True)

    def refusal(self, federation: Federation) -> str | None:
        reason = super().refusal(federation)
        if reason is None and not 0 <= self.target < federation.task.outputs:
            return f"target={self.target}; classes have the numbers 0 to {federation.task.outputs - 1}"
        return reason

    def fitted(self, federation: Federation) -> Targeted:
        return self

    def tried(self, inputs: Tensor | Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Test examples as attackers would show them, and which of them count, ``(n,)``.

        Args:
            inputs: ``(n, *features)``.
            targets: ``(n,)`` their true classes, none of them the target.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LabelFlip(Poison):
    """Class ``y`` becomes ``C - 1 - y`` (Fang et al. 2020)."""

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return inputs, classes - 1 - targets


@dataclass(frozen=True)
class RandomLabels(Poison):
    """Every class is drawn at random (Li et al. 2021, Ditto, A1)."""

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return inputs, torch.randint(classes, targets.shape, generator=random).to(targets)


def insist(poison: Poison, federation: Federation) -> None:
    """Refuse a federation that cannot be poisoned."""
    if reason := poison.refusal(federation):
        raise PluresError(f"{type(poison).__name__} does not fit {federation.name}: {reason}")
