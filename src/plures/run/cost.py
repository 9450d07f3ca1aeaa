"""What a method costs a client: bytes that travel, bytes kept, floating-point operations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from plures.federation import Federation
from plures.method import Bound, Leaf, View
from plures.run.engine import Engine
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
    and what the server's views need to know about it. Numbers in the header of a message are not counted.
    """
    down = 0
    for block in bound.blocks:
        leaves = {leaf: bound.initial[leaf.slot][leaf.path] for leaf in bound.travelling(block)}
        down += sum(t.nbytes for t in leaves.values()) * block.share.downloads(bound.setting)
        if isinstance(block.share, View):
            down += sum(bound.initial[s][p].nbytes for s, p in block.leaves)
    sent = [channel.size for channel in bound.channels if channel.tensors and channel.when == "train"]
    return sum(size or 0 for size in sent), down


def flops(bound: Bound, federation: Federation, training: Training) -> int:
    """Floating-point operations of one visit of the client of median size, forward and backward.

    Matrix products and convolutions are counted by running the visit on a copy; elementwise work is not.
    """
    device, dtype = next(iter(bound.initial["model"].values())).device, bound.network.dtype
    federation = federation.to(device, dtype)
    sizes = federation.splits["train"].sizes
    median = int(sizes.argsort(stable=True)[len(sizes) // 2])
    alone = Execution("loop", 1, False, "float64" if dtype == torch.float64 else "float32", str(device))
    engine = Engine(bound, federation, replace(training, rounds=1), alone, seed=0)
    received = {slot: {p: t.unsqueeze(0) for p, t in leaves.items()} for slot, leaves in bound.initial.items()}
    x = {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}
    with FlopCounterMode(display=False) as counter:
        engine.visit(x, received, [median], 0, bound.method.schedule)
    if federation.inputs.device.type == "cuda":
        torch.cuda.synchronize(device)
    return int(counter.get_total_flops())
