"""FoolsGold: clients that always move alike count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.method import Arrived, Leaves
from plures.robust.robust import COUNTS, Robust


@dataclass(frozen=True)
class FoolsGold(Robust):
    """Weigh clients by how little the sums of all their changes resemble each other (Fung et al. 2020, Algorithm 1).

    It is made for many colluding clients with one aim among clients that all differ. Clients with equal data look like
    colluders and count nothing; if all do, the model stays as it is. Weights multiply those of the method.

    The server remembers the sum of every client's changes, as many numbers as all clients have parameters together.
    Each block has its own.

    Attributes:
        confidence: kappa of the paper's logit.
    """

    title: ClassVar[str] = "foolsgold"
    single: ClassVar[bool] = True
    chooses: ClassVar[bool] = True

    confidence: float = 1.0

    def stands(self, uploads: int) -> None:
        return None

    def remembers(self, value: Tensor, population: int) -> Leaves:
        return {"sum": torch.zeros(len(value), population, value.shape[1], dtype=torch.float64)}

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        changes, clients = uploads - arrived.old, arrived.clients.to(uploads.device)
        summed = arrived.memory["sum"].index_add(0, clients, changes)
        weights = arrived.weights * learning(summed[clients], self.confidence)
        memory = {"sum": summed, COUNTS: weights > 0}
        if not weights.sum() > 0:
            return arrived.old, memory
        return arrived.old + (weights / weights.sum()) @ changes, memory


def learning(history: Tensor, confidence: float) -> Tensor:
    """``(n,)`` weights from 0 to 1 of clients with the sums ``(n, d)`` of their changes."""
    if len(history) == 1:
        return history.new_ones(1)
    unit = torch.nn.functional.normalize(history, dim=1)
    alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
    most = alike.max(1).values
    pardon = torch.where(most[None] > most[:, None], most[:, None] / most[None], 1.0).nan_to_num(0.0, 0.0, 0.0)
    alpha = (1 - (alike.fill_diagonal_(0.0) * pardon).fill_diagonal_(-torch.inf).max(1).values).clamp(0.0, 1.0)
    if not alpha.max() > 0:
        return alpha
    alpha = alpha / alpha.max()
    return (confidence * (torch.logit(alpha) + 0.5)).clamp(0.0, 1.0)
