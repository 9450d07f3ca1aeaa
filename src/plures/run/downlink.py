"""What the server sends out after a round, if its stages leave something out: the rest waits for the next round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from plures.method import BlockState, Bound, Sending
from plures.models import Leaves

DOWN = "downlink"
"""The name under which the server's memory of downloads is kept."""
SENT = "sent:"
"""Prefix in it: the last payloads, ``(rounds, ...)``, the newest last."""


def remembered(bound: Bound, apart: bool) -> Leaves:
    """The server's first memory.

    Args:
        bound: the method.
        apart: whether clients are elsewhere, so that what was sent out is kept for those who were away.
    """
    payloads = {
        f"{SENT}{name}": t.expand(reach(bound), *t.shape[1:]).clone()
        for name, t in (bound.down.payload.items() if apart else ())
    }
    return dict(bound.down.memory) | payloads


def reach(bound: Bound) -> int:
    """The most payloads that together are shorter than the model."""
    form, payload = (sum(t.nbytes for t in leaves.values()) for leaves in (bound.down.forms[0], bound.down.payload))
    return (form - 1) // payload


def kept_payloads(bound: Bound, memory: Mapping[str, Leaves], count: int) -> list[Leaves]:
    """The last payloads, the oldest first."""
    return [{name: memory[DOWN][f"{SENT}{name}"][-n] for name in bound.down.payload} for n in range(count, 0, -1)]


def after(bound: Bound, had: Mapping[str, Tensor], payload: Leaves) -> Leaves:
    """What clients have once a payload has reached them."""
    return {k: had[k] + d for k, d in bound.down.decode(payload).items()}


def sent_out(
    bound: Bound, old: Mapping[str, BlockState], made: Mapping[str, BlockState], memory: Leaves, key: int
) -> tuple[dict[str, BlockState], Leaves]:
    """What all clients have after a round, and what the server remembers.

    Args:
        bound: the method.
        old: what the clients had.
        made: what the round made of it.
        memory: what the server remembers of downloads.
        key: a random key of this round.
    """
    if not bound.down.stages:
        return dict(made), memory
    places = {k: name for name, kept in made.items() for k in kept.values if k in bound.down.forms[0]}
    before = {k: old[places[k]].values[k] for k in bound.down.forms[0]}
    change = {k: made[places[k]].values[k] - t for k, t in before.items()}
    random = torch.tensor([key], dtype=torch.int64, device=next(iter(change.values())).device)
    payload, owed = bound.down.encode(change, memory, Sending(random, before))
    there = after(bound, before, payload)
    kept_back = {k: torch.cat([t[1:], payload[k[len(SENT) :]]]) for k, t in memory.items() if k.startswith(SENT)}
    return {
        name: replace(kept, values=kept.values | {k: t for k, t in there.items() if places[k] == name})
        for name, kept in made.items()
    }, owed | kept_back


def received(bound: Bound, whole: int, missed: Tensor) -> int:
    """Bytes that clients receive in a round.

    Args:
        bound: the method.
        whole: bytes of all that a client receives if the model goes out as it is.
        missed: ``(clients,)`` how many changes each lacks; 0 for clients that have never had the model.
    """
    form, payload = (sum(t.nbytes for t in leaves.values()) for leaves in (bound.down.forms[0], bound.down.payload))
    saved = (form - missed * payload).clamp(min=0) * (missed > 0)
    return int((whole - saved).sum())
