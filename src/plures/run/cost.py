"""What a method costs a client: bytes that travel, bytes kept, floating-point operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plures.federation import Federation
from plures.method import Bound, Leaf, Phase, View
from plures.run.batches import Batches
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.training import Training


def stored_leaves(bound: Bound) -> list[Leaf]:
    """Leaves that a client keeps between rounds: those without a server value that local work changes."""
    return [leaf for b in bound.blocks if not b.share.served for leaf in b.leaves if leaf in bound.written]


def stored_bytes(bound: Bound) -> int:
    """Bytes that a client keeps between rounds."""
    return sum(bound.initial[s][p].nbytes for s, p in stored_leaves(bound))


def traffic(bound: Bound) -> tuple[int, int]:
    """Bytes that a client sends and receives in a round, apart from the initial download.

    It sends the tensors of its training channels: the payload of the wire, buffers, weights that it computes itself,
    and what the server's views need to know about it. It receives what a client does that takes part in every round.
    Numbers in the header of a message are not counted.
    """
    form, payload = (sum(t.nbytes for t in leaves.values()) for leaves in (bound.down.forms[0], bound.down.payload))
    sent = [channel.size for channel in bound.channels if channel.tensors and channel.when == "train"]
    return sum(size or 0 for size in sent), downloaded(bound) - form + payload


def downloaded(bound: Bound) -> int:
    """Bytes that a client receives in a round if everything goes out as it is."""
    down = 0
    for block in bound.blocks:
        leaves = {leaf: bound.initial[leaf.slot][leaf.path] for leaf in bound.travelling(block)}
        down += sum(t.nbytes for t in leaves.values()) * block.share.downloads(bound.setting)
        if isinstance(block.share, View):
            down += sum(bound.initial[s][p].nbytes for s, p in block.leaves)
    return down


def flops(bound: Bound, federation: Federation, training: Training) -> int:
    """Floating-point operations of one visit of the client of median size, forward and backward.

    Matrix products and convolutions are counted by running the visit on a copy, with one step for all steps that have
    as many examples; elementwise work is not.
    """
    device, dtype = next(iter(bound.initial["model"].values())).device, bound.network.dtype
    federation = federation.to(device, dtype)
    sizes = federation.splits["train"].sizes
    median = int(sizes.argsort(stable=True)[len(sizes) // 2])
    alone = Execution("loop", 1, False, "float64" if dtype == torch.float64 else "float32", str(device))
    engine = Counting(bound, federation, replace(training, rounds=1), alone, seed=0)
    received = {slot: {p: t.unsqueeze(0) for p, t in leaves.items()} for slot, leaves in bound.initial.items()}
    x = {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}
    with engine.counting:
        engine.visit(x, received, [median], 0, bound.method.schedule)
        total = engine.counting.get_total_flops() + engine.repeated
    if federation.inputs.device.type == "cuda":
        torch.cuda.synchronize(device)
    return int(total)


class Counting(Engine):
    """Visits in which one step stands for all that have as many examples.

    Attributes:
        counting: counts the operations that are done.
        repeated: operations that were not done, because a step stood for them.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.counting, self.repeated = FlopCounterMode(display=False), 0

    def train(self, phase: Phase, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        losses = torch.zeros(2, len(plan.steps), device=plan.rows.device)
        for step, number in plan.kinds():
            before = self.counting.get_total_flops()
            losses = number * super().train(phase, x, received, step, rate)
            self.repeated += (number - 1) * (self.counting.get_total_flops() - before)
        return losses
