"""What a method costs a client: bytes that travel, bytes kept, floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.federation import Federation
from plures.method import Bound, Leaf, Phase, View
from plures.method.sizes import Held
from plures.models import Network
from plures.models.operations import Operations
from plures.models.widths import narrowed
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
    """Bytes that a client keeps between rounds; their mean where clients hold networks of different sizes."""
    leaves = stored_leaves(bound)
    whole = sum(bound.initial[s][p].nbytes for s, p in leaves)
    return round(whole - _mean(absent(bound, bound.held, leaves, range(len(bound.setting)))))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(1, len(values))


def absent(bound: Bound, held: Held | None, leaves: Sequence[Leaf], clients: Sequence[int]) -> list[int]:
    """For some clients, bytes of the entries of some leaves that they do not hold."""
    found = [0] * len(clients)
    for leaf in bound.cut(leaves) if held is not None and held.cut else []:
        like = bound.initial[leaf.slot][leaf.path]
        if held is not None and leaf.path in held.cut:
            found = [n + like.nbytes - held.nbytes(leaf.path, like, [i]) for n, i in zip(found, clients, strict=True)]
    return found


def traffics(bound: Bound, held: Held | None, clients: Sequence[int]) -> list[tuple[int, int]]:
    """What each of some clients sends and receives; see :func:`traffic`.

    Args:
        bound: the method.
        held: which part of the network each client holds; ``None`` if all hold all of it.
        clients: their positions.
    """
    up, down = _whole(bound)
    blocks = [(bound.travelling(block), block.share.downloads(bound.setting)) for block in bound.blocks]
    less = [(absent(bound, held, leaves, clients), times) for leaves, times in blocks if leaves]
    return [
        (up - sum(some[n] for some, _ in less), down - sum(some[n] * times for some, times in less))
        for n in range(len(clients))
    ]


def traffic(bound: Bound) -> tuple[int, int]:
    """Bytes that a client sends and receives in a round, apart from the initial download.

    Where clients hold networks of different sizes, it is the mean over the clients.

    It sends the tensors of its training channels: the payload of the wire, buffers, weights that it computes itself,
    and what the server's views need to know about it. It receives what a client does that takes part in every round.
    Numbers in the header of a message are not counted.
    """
    if bound.held is not None:
        each = traffics(bound, bound.held, range(len(bound.setting)))
        return round(_mean([up for up, _ in each])), round(_mean([down for _, down in each]))
    return _whole(bound)


def _whole(bound: Bound) -> tuple[int, int]:
    """What a client with the whole network sends and receives."""
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
    as many examples; elementwise work is not. A client that holds a part of the network works with a smaller one.
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
    bound = alone(bound, bound.held, place)
    single = Execution("loop", 1, False, "float64" if dtype == torch.float64 else "float32", str(device))
    engine = Counting(bound, federation, replace(training, rounds=1), single, seed=0)
    received = {slot: {p: t.unsqueeze(0) for p, t in leaves.items()} for slot, leaves in bound.initial.items()}
    x = {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}
    with engine.counting, watch or nullcontext():
        engine.visit(x, received, [place], 0, bound.method.schedule)
        total = engine.counting.total + engine.repeated
    if federation.inputs.device.type == "cuda":
        torch.cuda.synchronize(device)
    return int(total), engine


def alone(bound: Bound, held: Held | None, client: int) -> Bound:
    """The method with the network that a client really holds, in smaller tensors."""
    if held is None or not held.cut:
        return bound
    module = narrowed(bound.network.trainable(), held.widths, held.units[client].tolist())
    few = Network(module)
    few.widths = held.widths
    return replace(bound.method, sizes=None).bind(few, bound.setting)


class Counting(Engine):
    """Visits in which one step stands for all that have as many examples.

    Attributes:
        counting: counts the operations that are done.
        repeated: operations that were not done, because a step stood for them.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.counting, self.repeated = Operations(), 0

    def train(self, phase: Phase, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        losses = torch.zeros(2, len(plan.steps), device=plan.rows.device)
        for step, number in plan.kinds():
            before = self.counting.total
            losses = number * super().train(phase, x, received, step, rate)
            self.repeated += (number - 1) * (self.counting.total - before)
        return losses


def loads(bound: Bound, federation: Federation, training: Training) -> Load:
    """What one visit costs every client.

    Operations are counted for the clients of smallest, median and largest size and some between, and interpolated by
    the number of examples for the others. So is memory: all leaves that the client receives, those that it changes, and
    the most bytes of all other tensors at once, with temporaries, as this machine computes.
    """
    held = bound.held
    if held is None or not held.cut:
        return _loads(bound, federation, training)
    rates = held.rates.numpy()
    each = {
        rate: _loads(alone(bound, held, int((rates == rate).argmax())), federation, training) for rate in set(rates)
    }
    sent = np.array(traffics(bound, held, range(len(rates))), dtype=np.float64)

    def own(name: str) -> Any:
        """A number of every client, from the loads of its rate."""
        return np.array([getattr(each[rate], name)[place] for place, rate in enumerate(rates)])

    return Load(own("flops"), own("steps"), sent[:, 0], sent[:, 1], own("memory"))


def _loads(bound: Bound, federation: Federation, training: Training) -> Load:
    """What one visit costs every client if all hold the network that the method is bound to."""
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
