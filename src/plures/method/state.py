"""What an objective reads: a client's state, and a batch of its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.federation import Task
from plures.models import Leaves, Network


class State:
    """A client's leaves, slot by slot: ``x.model``, ``x.personal``, ... are ``{path: tensor}``."""

    def __init__(self, slots: Mapping[str, Leaves]) -> None:
        self._slots = slots

    def __getattr__(self, slot: str) -> Leaves:
        if slot.startswith("__"):
            raise AttributeError(slot)
        return self._slots[slot]

    def slot_of(self, leaves: Leaves) -> str | None:
        """Which slot these very leaves are, or ``None`` for leaves made by arithmetic."""
        for name, held in self._slots.items():
            if held is leaves:
                return name
        return None


@dataclass(frozen=True)
class Problem:
    """The network and the task: everything a batch needs to become a loss."""

    network: Network
    task: Task

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """Mean loss over a batch; ``weight`` is 1 for examples and 0 for padding, ``None`` when all count."""
        if self.task.kind == "classification":
            if weight is None:
                return F.cross_entropy(outputs, targets)
            each = F.cross_entropy(outputs, targets, reduction="none")
        else:
            each = (outputs - targets).square().sum(-1)
        return each.mean() if weight is None else (each * weight).sum() / weight.sum()


@dataclass
class Batch:
    """Examples of one client.

    Attributes:
        inputs: ``(batch, *features)``.
        targets: ``(batch,)`` or ``(batch, outputs)``.
        weight: ``(batch,)`` 1 for an example and 0 for padding; ``None`` when all are examples.
        problem: network and task.
        train: whether forward passes run in training mode.
        key: int64 scalar that determines dropout.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor | None
    problem: Problem
    train: bool = True
    key: Tensor | None = None
    seen: list[tuple[Leaves, Leaves]] = field(default_factory=list)
    """Buffers that each forward pass left behind, beside the leaves it was made with."""

    def outputs(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """Network outputs ``(batch, outputs)``.

        Args:
            leaves: the model to evaluate.
            keep: the slot whose running statistics this pass updates; by default ``leaves`` itself.
        """
        outputs, buffers = self.problem.network(leaves, self.inputs, train=self.train, key=self.key)
        if buffers:
            self.seen.append((leaves if keep is None else keep, buffers))
        return outputs

    def loss(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """Mean task loss of a model on this batch, a scalar."""
        return self.problem.loss(self.outputs(leaves, keep), self.targets, self.weight)


SlotName = str | Literal["model"]


def task_loss(leaves: Leaves, batch: Batch, keep: Leaves | None = None) -> Tensor:
    """Mean task loss (cross-entropy or squared error) of a model on a batch; see :meth:`Batch.loss`."""
    return batch.loss(leaves, keep)


def gradient(leaves: Leaves, batch: Batch) -> Leaves:
    """Gradient of the task loss with respect to every floating-point parameter of ``leaves``.

    Buffers keep their entry, with a zero gradient.
    """
    free = {name: t for name, t in leaves.items() if not batch.problem.network.info[name].buffer}
    held = {name: t for name, t in leaves.items() if name not in free}

    def loss(parameters: Leaves) -> Tensor:
        values = {name: parameters[name] if name in parameters else held[name] for name in leaves}
        return Batch(batch.inputs, batch.targets, batch.weight, batch.problem, batch.train, batch.key).loss(values)

    grads = torch.func.grad(loss)(free)
    return {name: grads[name] if name in grads else torch.zeros_like(t) for name, t in leaves.items()}
