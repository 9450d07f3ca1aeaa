"""Backdoors: a trigger in the input that leads to a class of the attacker's choice, and how often it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation import Federation, Inputs
from plures.threat.poison import Poison, insist

if TYPE_CHECKING:
    from plures.run import Run


@dataclass(frozen=True)
class Patch:
    """A trigger: some entries of the input have a fixed value.

    A corner of a picture, a value of a table's column.

    Attributes:
        places: for every feature dimension, the positions that it covers; a patch is their product.
        value: the value there, after scaling.
    """

    places: tuple[tuple[int, ...], ...]
    value: float

    def put(self, inputs: Tensor | Inputs) -> Tensor:
        """Inputs ``(n, *features)`` with the trigger."""
        if isinstance(inputs, Inputs):
            raise PluresError("a trigger is put into one input, and these examples have several")
        if len(self.places) != inputs.dim() - 1:
            raise PluresError(
                f"the trigger covers {len(self.places)} dimensions and inputs have {inputs.dim() - 1}: give positions "
                "for each"
            )
        for positions, size in zip(self.places, inputs.shape[1:], strict=True):
            if not positions or not all(0 <= p < size for p in positions):
                raise PluresError(f"the trigger's positions {list(positions)}: give some from 0 to {size - 1}")
        covered = torch.zeros(inputs.shape[1:], dtype=torch.bool)
        covered[torch.meshgrid(*map(torch.tensor, self.places), indexing="ij")] = True
        return torch.where(covered.to(inputs.device), self.value, inputs)


@dataclass(frozen=True)
class Backdoor(Poison):
    """A part of the training examples gets a trigger and the target class (Gu et al. 2017; Bagdasaryan et al. 2020).

    Attributes:
        trigger: what is put into the inputs.
        target: the class that it shall lead to, by number.
        share: part of an attacker's training examples.
    """

    trigger: Patch
    target: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PluresError(f"share={self.share}: give the poisoned part of the training examples, up to 1")

    def refusal(self, federation: Federation) -> str | None:
        reason = super().refusal(federation)
        if reason is None and not 0 <= self.target < federation.task.outputs:
            return f"target={self.target}; classes have the numbers 0 to {federation.task.outputs - 1}"
        return reason

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(targets), generator=random)[: round(self.share * len(targets))]
        some = torch.zeros(len(targets), dtype=torch.bool).index_fill(0, chosen, True)
        marked = torch.where(some.view(-1, *(1,) * (inputs.dim() - 1)), self.trigger.put(inputs), inputs)
        return marked, torch.where(some, self.target, targets)


def success(run: Run, backdoor: Backdoor, clients: Sequence[str] | None = None) -> dict[str, float]:
    """Attack success rate of every client: the share of its triggered test examples that go to the target class.

    Test examples of the target class itself do not count. Each client's own predictor decides.

    Args:
        run: a run, trained with or without the attack.
        backdoor: the trigger and its target.
        clients: names; default: all that have test examples of other classes.
    """
    federation = run.federation
    insist(backdoor, federation)
    found = {}
    for place, name in enumerate(federation.clients):
        rows = federation.splits["test"][place]
        rows = rows[federation.targets[rows] != backdoor.target]
        if not len(rows) or (clients is not None and name not in clients):
            continue
        outputs = run.engine.forward(run.deployed([place]), backdoor.trigger.put(federation.inputs[rows])[None])[0]
        found[name] = float((outputs.argmax(1) == backdoor.target).double().mean())
    return found
