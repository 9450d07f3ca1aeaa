"""What a method costs a client: bytes that travel, bytes kept, floating-point operations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plures.federation import Federation
from plures.method import Bound, Leaf, Phase, View
from plures.run.alive import Alive
from plures.run.batches import Batches
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.training import Training
from plures.run.turn import Load

POINTS = 5
"""Sizes of clients for which the cost of a visit is counted."""


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
    sizes = federation.splits["train"].sizes
    return _counted(bound, federation, training, int(sizes.argsort(stable=True)[len(sizes) // 2]))[0]


def _counted(
    bound: Bound,
    federation: Federation,
    training: Training,
    place: int,
    watch: AbstractContextManager[Any] | None = None,
) -> tuple[int, Engine]:
    """Floating-point operations of one client's visit, and the engine that counted them."""
    device, dtype = next(iter(bound.initial["model"].values())).device, bound.network.dtype
    federation = federation.to(device, dtype)
    alone = Execution("loop", 1, False, "float64" if dtype == torch.float64 else "float32", str(device))
    engine = Counting(bound, federation, replace(training, rounds=1), alone, seed=0)
    received = {slot: {p: t.unsqueeze(0) for p, t in leaves.items()} for slot, leaves in bound.initial.items()}
    x = {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}
    with engine.counting, watch or nullcontext():
        engine.visit(x, received, [place], 0, bound.method.schedule)
        total = engine.counting.get_total_flops() + engine.repeated
    if federation.inputs.device.type == "cuda":
        torch.cuda.synchronize(device)
    return int(total), engine


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


def loads(bound: Bound, federation: Federation, training: Training) -> Load:
    """What one visit costs every client.

    Operations are counted for the clients of smallest, median and largest size and some between, and interpolated by
    the number of examples for the others. So is memory: all leaves that the client receives, those that it changes, and
    the most bytes of all other tensors at once, with temporaries, as this machine computes.
    """
    sizes = federation.splits["train"].sizes.numpy().astype(np.float64)
    known = np.unique(sizes[sizes > 0])
    if not len(known):
        known = np.array([1.0])
    chosen = np.unique(known[np.linspace(0, len(known) - 1, POINTS).round().astype(int)])
    places = [int(np.flatnonzero(sizes == size)[0]) if (sizes == size).any() else 0 for size in chosen]
    found, alive = [], []
    for place in places:
        watch = Alive()
        found.append(_counted(bound, federation, training, place, watch))
        alive.append(float(watch.peak))
    up, down = traffic(bound)
    engine = found[0][1]
    held = sum(t.nbytes for leaves in bound.initial.values() for t in leaves.values())
    return Load(
        np.interp(sizes, chosen, [total for total, _ in found]) * (sizes > 0),
        engine.steps(bound.method.schedule, 0) * (sizes > 0),
        np.full(len(sizes), float(up)),
        np.full(len(sizes), float(down)),
        held + np.interp(sizes, chosen, alive),
    )
