"""What a network costs a device: parameters, bytes, operations and memory of a training step."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.models import nested
from plures.models.budget import Budget as Budget
from plures.models.budget import Counted as Counted
from plures.models.network import call
from plures.models.operations import Operations
from plures.models.outputs import told


@dataclass(frozen=True)
class Footprint:
    """What a network costs.

    Attributes:
        parameters: numbers that are trained.
        bytes: of its parameters and buffers, which travel in each round.
        flops: floating-point operations of a training step, forward and backward, for each example of a batch. Matrix
            products and convolutions count, elementwise work does not.
        activations: bytes that a forward pass keeps for the backward pass, for each example.
    """

    parameters: int
    bytes: int
    flops: int
    activations: int

    def memory(self, batch: int) -> int:
        """Bytes of a step of plain SGD: leaves, gradients, and what is kept for the backward pass of a batch."""
        return 2 * self.bytes + batch * self.activations

    def of(self, budget: Counted, batch: int = 1) -> int:
        """The number that a budget limits."""
        return self.memory(batch) if budget == "memory" else int(getattr(self, budget))


def footprint(module: nn.Module, example: Tensor | Inputs) -> Footprint:
    """Measure a network by one training step on a copy, with two and with four examples.

    Args:
        module: the network; it is not changed.
        example: inputs ``(any, *features)``, whose shape and type count.

    Examples:
        >>> footprint(plures.models.mlp((13,), 2, hidden=(64,)), torch.zeros(0, 13)).parameters
        1026
    """
    module = copy.deepcopy(module)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise PluresError("the network has no parameter to train, so a training step cannot be measured")
    held = [*module.parameters(), *module.buffers()]
    two, four = (_step(module, trained, held, example, rows) for rows in (2, 4))
    size = sum(t.nbytes for t in held)
    count = sum(p.numel() for p in trained)
    return Footprint(count, size, *((b - a) // 2 for a, b in zip(two, four, strict=True)))


def _step(
    module: nn.Module, trained: list[nn.Parameter], held: list[Tensor], example: Tensor | Inputs, rows: int
) -> tuple[int, int]:
    """Operations and kept bytes of a step with some examples."""
    known = {t.untyped_storage().data_ptr() for t in held}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    like = trained[0]

    def blank(t: Tensor) -> Tensor:
        kind = like.dtype if t.is_floating_point() else t.dtype
        return torch.zeros(rows, *t.shape[1:], dtype=kind, device=like.device)

    inputs = nested.mapped(blank, example)
    known |= {t.untyped_storage().data_ptr() for t in nested.ends(inputs)}
    module.train()
    with torch.enable_grad(), Operations() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = told(call(module, inputs))
        torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
    return counter.total, sum(kept.values())
