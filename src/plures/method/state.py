"""What an objective reads: a client's state, and a batch of its examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plures.brief import brief
from plures.entropy import Entropy
from plures.errors import PluresError, suggestion
from plures.federation.inputs import Inputs, one_tensor
from plures.method.tree import detach
from plures.models import Leaves, Marked, Network
from plures.models.layers import uniform
from plures.tasks import Task


class State:
    """A client's leaves, slot by slot: ``x.model``, ``x.personal``, ... are ``{path: tensor}``.

    Args:
        slots: the leaves.
        fixed: paths of the model's buffers and frozen leaves, which arithmetic never changes (:attr:`Network.fixed`).
    """

    def __init__(self, slots: Mapping[str, Leaves], fixed: frozenset[str] = frozenset()) -> None:
        self._slots, self._fixed = slots, fixed
        self._known: dict[str, Leaves] = {}

    def __getattr__(self, slot: str) -> Leaves:
        if slot.startswith("__"):
            raise AttributeError(slot)
        if slot not in self._slots:
            raise PluresError(f"x.{slot}: the state has no slot {slot!r}; {suggestion(slot, self._slots, 'slots are')}")
        if slot not in self._known:
            leaves = self._slots[slot]
            self._known[slot] = leaves if isinstance(leaves, Marked) else Marked(leaves, self._fixed)
        return self._known[slot]

    def __contains__(self, slot: str) -> bool:
        return slot in self._slots

    def slot_of(self, leaves: Leaves) -> str | None:
        """The slot that holds exactly these leaves, or ``None`` for leaves made by arithmetic."""
        for name in self._slots:
            if self._known.get(name) is leaves:
                return name
        return None


@dataclass(frozen=True, eq=False)
class Problem:
    """The network and the task: everything a batch needs to become a loss.

    Attributes:
        network: the model.
        task: what is predicted.
        decay: weight decay that the optimizer of a phase adds to the gradients, for objectives that scale theirs.
        entropy: random bytes that only the client knows, at a site; ``None`` in a simulation, where everything follows
            from the keys.
    """

    network: Network
    task: Task
    decay: float = 0.0
    entropy: Entropy | None = None

    def losses(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """What every example adds to the task's loss, ``(batch,)``; ``weight`` is how much each counts."""
        return self.task.terms(outputs, targets, weight)

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """Mean loss over a batch; ``weight`` is how much each example counts, ``None`` when all count alike."""
        return self.task.mean_loss(outputs, targets, weight)


@brief
@dataclass(slots=True, eq=False)
class Pass:
    """A forward pass in training.

    Attributes:
        leaves: the leaves used, or the slot that the pass was made for.
        buffers: the buffers after the pass.
        batch: its examples.
        outputs: ``(batch, outputs)``; ``None`` for a pass made only for the buffers, or through one part.
        loss: mean task loss on its examples, if it was computed.
    """

    leaves: Leaves
    buffers: Leaves
    batch: Batch
    outputs: Tensor | None = None
    loss: Tensor | None = None

    def of(self, batch: Batch) -> bool:
        """Whether it computed outputs for the examples of a batch, with original or transformed inputs."""
        return (
            self.outputs is not None and self.batch.targets is batch.targets and len(self.outputs) == len(batch.targets)
        )

    def task_loss(self, batch: Batch) -> Tensor:
        """Mean task loss on the examples of a batch, without gradient."""
        if self.loss is not None and self.batch.weight is batch.weight:
            return self.loss.detach()
        assert self.outputs is not None
        return batch.problem.loss(self.outputs.detach(), batch.targets, batch.weight)


@brief
@dataclass(slots=True, eq=False)
class Batch:
    """Examples of one client.

    Attributes:
        inputs: ``(batch, *features)``; several by name are ``Inputs``.
        targets: ``(batch,)`` or ``(batch, outputs)``.
        weight: ``(batch,)`` how much each example counts: its weight, else 1; 0 for padding (:meth:`mean`). ``None``
            when all are examples and count alike.
        problem: network and task.
        train: whether forward passes run in training mode.
        key: int64 scalar that determines dropout and random numbers.
        own: when predicting, the client's examples of the splits that the predictor reads.
    """

    inputs: Tensor | Inputs
    targets: Tensor
    weight: Tensor | None
    problem: Problem
    train: bool = True
    key: Tensor | None = None
    seen: list[Pass] = field(default_factory=list)
    """The forward passes so far in training mode."""
    own: Mapping[str, Batch] = field(default_factory=dict)

    @property
    def input(self) -> Tensor:
        """The inputs of a method that changes or measures them, ``(batch, *features)``; several are refused."""
        return one_tensor(self.inputs, "the method")

    @property
    def mask(self) -> Tensor:
        """``(batch,)`` how much each example counts, 0 for padding, in the model's type; for weighted means."""
        if self.weight is not None:
            return self.weight
        return torch.ones(len(self.targets), dtype=self.problem.network.dtype, device=self.targets.device)

    @property
    def real(self) -> Tensor:
        """``(batch,)`` 1 for an example and 0 for padding, whatever its weight, in the model's type; for counts."""
        return (self.mask > 0).to(self.problem.network.dtype)

    def outputs(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """Network outputs ``(batch, outputs)``.

        Args:
            leaves: the model to evaluate.
            keep: the slot whose running statistics this pass updates, ``{}`` for none; by default ``leaves`` itself.
                If a slot has several passes in a step, the last one counts.
        """
        outputs, buffers = self.problem.network(leaves, self.inputs, train=self.train, key=self.key)
        self.note(leaves if keep is None else keep, buffers, outputs)
        return outputs

    def note(self, leaves: Leaves, buffers: Leaves, outputs: Tensor | None, loss: Tensor | None = None) -> None:
        """Record a forward pass."""
        if self.train:
            self.seen.append(Pass(leaves, buffers, self, outputs, loss))

    def represented(self, leaves: Leaves, keep: Leaves | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``(batch, outputs)`` and the head's input ``(batch, d)``, from one pass."""
        outputs, features, buffers = self.problem.network.tapped(leaves, self.inputs, train=self.train, key=self.key)
        self.note(leaves if keep is None else keep, buffers, outputs)
        return outputs, features

    def heads(self, leaves: Leaves, keep: Leaves | None = None) -> tuple[Tensor, ...]:
        """What each exit of a network gives, and then its head, ``(batch, outputs)`` each, from one pass."""
        network = self.problem.network
        outputs, made, buffers = network.heads(leaves, self.inputs, train=self.train, key=self.key)
        self.note(leaves if keep is None else keep, buffers, outputs)
        return made

    def features(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """The head's input, ``(batch, d)``: the representation of every example."""
        return self.represented(leaves, keep)[1]

    def head(self, leaves: Leaves, features: Tensor) -> Tensor:
        """Outputs of the head only, ``(batch, outputs)``, on representations ``(batch, d)``."""
        return self.part("head", leaves, features)

    def part(self, role: str, leaves: Leaves, inputs: Tensor, keep: Leaves | None = None) -> Tensor:
        """Outputs of the one part of the network with a role, on its inputs ``(batch, ...)``."""
        outputs, buffers = self.problem.network.through(role, leaves, inputs, train=self.train, key=self.key)
        self.note(leaves if keep is None else keep, buffers, None)
        return outputs

    def see(self, leaves: Leaves) -> None:
        """A forward pass only for the running statistics of a slot whose weights an objective reads without a pass.

        It costs nothing where the network keeps no statistics.
        """
        if self.train and self.problem.network.statistics:
            _, buffers = self.problem.network(detach(leaves), self.inputs, train=True, key=self.key)
            self.note(leaves, buffers, None)

    def losses(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """Task loss of every example, ``(batch,)``."""
        return self.problem.losses(self.outputs(leaves, keep), self.targets, self.weight)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of one number per example ``(batch, ...)``, by the examples' weights; padding left out.

        Average with this method, not with ``values.mean(0)``: clients with batches of different sizes can then work
        side by side, on batches padded with rows of weight 0. A function that averages on its own gets each client's
        examples without padding, which gives the same number but takes longer.
        """
        if self.weight is None:
            return values.mean(0)
        return (values * self.weight.view(-1, *(1,) * (values.dim() - 1))).sum(0) / self.weight.sum()

    def loss(self, leaves: Leaves, keep: Leaves | None = None) -> Tensor:
        """Mean task loss of a model on this batch, a scalar."""
        value = self.problem.loss(self.outputs(leaves, keep), self.targets, self.weight)
        if self.train:
            self.seen[-1].loss = value
        return value

    def uniform(self, *shape: int, salt: int = 0) -> Tensor:
        """Random numbers in [0, 1), which depend only on seed, client, round, step and ``salt``."""
        assert self.key is not None, "the phase must say random=True"
        drawn = uniform(self.key + salt * 0x51ED270B, math.prod(shape)).reshape(shape)
        return drawn.to(self.problem.network.dtype)


def task_loss(leaves: Leaves, batch: Batch, keep: Leaves | None = None) -> Tensor:
    """Mean task loss of a model on a batch; see :meth:`Batch.loss`."""
    return batch.loss(leaves, keep)


def gradient(leaves: Leaves, batch: Batch, keep: Leaves | None = None) -> Leaves:
    """Gradient of the task loss with respect to every floating-point parameter of ``leaves``.

    Buffers and frozen parameters keep their entry, with a zero gradient.

    Args:
        leaves: the model at which the gradient is taken.
        batch: the examples.
        keep: the slot whose running statistics the forward pass updates; by default ``leaves`` itself.
    """
    free = {name: t for name, t in leaves.items() if name not in batch.problem.network.fixed}

    def loss(parameters: Leaves) -> tuple[Tensor, tuple[Tensor, Leaves]]:
        values = {**leaves, **parameters}
        outputs, buffers = batch.problem.network(values, batch.inputs, train=batch.train, key=batch.key)
        return batch.problem.loss(outputs, batch.targets, batch.weight), (outputs, buffers)

    grads, (value, (outputs, buffers)) = torch.func.grad_and_value(loss, has_aux=True)(free)
    batch.note(leaves if keep is None else keep, buffers, outputs, value)
    return {name: grads[name] if name in grads else torch.zeros_like(t) for name, t in leaves.items()}
