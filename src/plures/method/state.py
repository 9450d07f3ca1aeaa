"""What an objective reads: a client's state, and a batch of its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(slots=True)
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


def task_loss(leaves: Leaves, batch: Batch, keep: Leaves | None = None) -> Tensor:
    """Mean task loss (cross-entropy or squared error) of a model on a batch; see :meth:`Batch.loss`."""
    return batch.loss(leaves, keep)


def gradient(leaves: Leaves, batch: Batch, keep: Leaves | None = None) -> Leaves:
    """Gradient of the task loss with respect to every floating-point parameter of ``leaves``.

    Buffers keep their entry, with a zero gradient.

    Args:
        leaves: the model at which the gradient is taken.
        batch: the examples.
        keep: the slot whose running statistics the forward pass updates; by default ``leaves`` itself.
    """
    free = {name: t for name, t in leaves.items() if not batch.problem.network.info[name].buffer}

    def loss(parameters: Leaves) -> tuple[Tensor, Leaves]:
        values = {**leaves, **parameters}
        outputs, buffers = batch.problem.network(values, batch.inputs, train=batch.train, key=batch.key)
        return batch.problem.loss(outputs, batch.targets, batch.weight), buffers

    grads, buffers = torch.func.grad(loss, has_aux=True)(free)
    if buffers:
        batch.seen.append((leaves if keep is None else keep, buffers))
    return {name: grads[name] if name in grads else torch.zeros_like(t) for name, t in leaves.items()}
