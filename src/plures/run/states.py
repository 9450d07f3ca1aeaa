"""The clients' current leaves, collected from the places where they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plures.method import AGE, LATER, Block, BlockState, Known, Leaf, Sized, View
from plures.method.leaf import by_leaf
from plures.models import Leaves
from plures.run.coordinator import Coordinator
from plures.run.engine import Stack


def states(
    run: Coordinator[Any],
    clients: list[int],
    server: Mapping[str, BlockState] | None = None,
    rows: Mapping[str, Tensor] | None = None,
) -> Stack:
    """What some clients hold: what is shared from the server, what is personal from the store.

    Args:
        run: a coordinator that stores everything its clients keep.
        clients: positions.
        server: what the server keeps; default: what it keeps now.
        rows: for some blocks, the rows to receive instead of the clients' own.
    """
    server, stack = server or run.server, {slot: dict(ls) for slot, ls in run.bound.initial.items()}
    index = torch.tensor(clients)
    views = [block for block in run.bound.blocks if isinstance(block.share, View)]
    for block in run.bound.blocks:
        share = block.share
        values: Leaves = {}
        if share.served:
            kept = server[block.name]
            chosen = rows[block.name] if rows and block.name in rows else share.row(kept, index)
            values = share.read(kept, chosen)
        for leaf in block.leaves:
            slot, path = leaf
            if share.served:
                stack[slot][path] = values[str(leaf)]
            elif isinstance(share, Sized) and run.held is not None:
                stack[slot][path] = run.held.known(clients, run.bound.network.dtype).to(run.device)
            elif isinstance(share, Known):
                stack[slot][path] = _fact(run, path)[clients]
            elif leaf in run.store:
                stack[slot][path] = run.store.get(leaf, clients)
            else:
                value = run.bound.initial[slot][path]
                stack[slot][path] = value.expand(len(clients), *value.shape)
    for block in views:
        seen = _seen(run, block, clients, stack)
        for slot, path in block.leaves:
            stack[slot][path] = seen[path]
    if run.held is not None and run.held.cut:
        for slot, path in run.bound.cut(by_leaf(stack)):
            stack[slot][path] = run.held.masked(path, stack[slot][path], clients)
    return stack


def _fact(run: Coordinator[Any], name: str) -> Tensor:
    """A fact about every client."""
    if name == LATER:
        later = torch.full((len(run.setting),), float(run.trained_with is not None))
        return later.to(run.device, run.bound.network.dtype)
    if name != AGE:
        return run.setting.fact(name)
    missed = (run.round - run.last) * (run.last > 0)
    return missed.to(run.device, run.bound.network.dtype)


def _seen(run: Coordinator[Any], block: Block, clients: list[int], stack: Stack) -> Leaves:
    """What some clients see of the models of others; newcomers see those of the clients that they join."""
    assert isinstance(block.share, View)
    source = run.trained_with or run
    who = torch.tensor(clients) if source is run else torch.full((len(clients),), -1)
    return source.seen(block.share, who, [run.setting.clients[i] for i in clients], stack)


def working(received: Stack, written: frozenset[Leaf]) -> Stack:
    """A working copy: leaves that local work writes are copied, others are the received ones."""
    return {
        slot: {path: t.clone() if Leaf(slot, path) in written else t for path, t in leaves.items()}
        for slot, leaves in received.items()
    }
