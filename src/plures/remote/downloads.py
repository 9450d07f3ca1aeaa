"""Compressed downloads over sites: what the server sends a site that was there before, and what the site makes of it.

A site keeps the model that it received in a round with the version of its personal state made in that round. So the
server knows from the version that counts what the site has, and sends what has changed since, a payload for each round,
or the model itself where that is no longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from plures.errors import PluresError
from plures.method import Bound
from plures.models import Leaves
from plures.remote.state import LostError, RefusedError
from plures.run.coordinator import Coordinator
from plures.run.downlink import DOWN, after, kept_payloads, reach

BASE = "base"
"""Prefix in a version's file: the model that it was trained from."""


def label(version: int, name: str) -> str:
    """Name in an order of a part of the payload that was sent out after so many rounds."""
    return f"{DOWN}:{version}:{name}"


def versions(bound: Bound, accepted: int, round: int) -> range:
    """The rounds after which something was sent out that a client lacks; empty if it gets the model itself.

    Args:
        bound: the method.
        accepted: the number of rounds finished when its last upload was applied, 0 for never.
        round: the number of rounds finished now.
    """
    found = range(accepted, round + 1)
    return found if bound.down.stages and accepted and len(found) <= reach(bound) else range(0)


def changes(run: Coordinator[Any], accepted: int) -> Leaves:
    """What a client gets in place of the leaves whose downloads are encoded; nothing if it gets these leaves."""
    wanted = versions(run.bound, accepted, run.round)
    return {
        label(version, name): value
        for version, payload in zip(wanted, kept_payloads(run.bound, run.memory, len(wanted)), strict=True)
        for name, value in payload.items()
    }


def templates(bound: Bound, accepted: int, round: int) -> Leaves:
    """The tensors of :func:`changes`, with zeros."""
    return {
        label(version, name): t[0]
        for version in versions(bound, accepted, round)
        for name, t in bound.down.payload.items()
    }


def based(run: Coordinator[Any]) -> Leaves:
    """The leaves of a site's model whose downloads are encoded, as it received them, by the names of its file."""
    return {f"{BASE}:{name}": t[0] for name, t in _encoded(run)}


def resting(run: Coordinator[Any], stored: Mapping[str, Tensor]) -> None:
    """Put the model that a version was trained from into a site's run.

    Raises:
        LostError: if the version does not hold it.
    """
    for block, kept in run.server.items():
        names = [name for name in kept.values if name in run.bound.down.forms[0]]
        if any(f"{BASE}:{name}" not in stored for name in names):
            raise LostError("the model that its personal state was trained from is not on its disk; it starts afresh")
        had = {name: stored[f"{BASE}:{name}"].unsqueeze(0) for name in names}
        run.server[block] = replace(kept, values={**kept.values, **had})


def caught_up(run: Coordinator[Any], accepted: int, received: Mapping[str, Tensor]) -> set[str]:
    """Apply to a site's model what was sent out since it had it. Returns the names in the order that belong to this.

    Args:
        run: the site's run, with the model of the version that counts.
        accepted: that version.
        received: the tensors of the order.

    Raises:
        RefusedError: if there is not exactly what the site lacks, or it cannot be decoded.
    """
    sent = {name for name in received if name.startswith(f"{DOWN}:")}
    if not sent:
        return sent
    like = templates(run.bound, accepted, run.round)
    if sent != like.keys():
        odd = sorted(sent ^ like.keys())[0]
        raise RefusedError(f"the server sent other changes of the model than those that it lacks: {odd!r} is one")
    for name, t in like.items():
        value = received[name]
        if value.shape != t.shape or value.dtype != t.dtype:
            raise RefusedError(f"the server sent {name!r} as {value.dtype} {tuple(value.shape)}, not {tuple(t.shape)}")
    model: Leaves = dict(_encoded(run))
    for version in versions(run.bound, accepted, run.round):
        payload = {name: received[label(version, name)].unsqueeze(0) for name in run.bound.down.payload}
        try:
            model = after(run.bound, model, payload)
        except (PluresError, RuntimeError, LookupError, ValueError) as error:
            raise RefusedError(f"a change of the model cannot be decoded ({type(error).__name__})") from error
    if not all(bool(t.isfinite().all()) for t in model.values()):
        raise RefusedError("a change of the model holds a NaN or an infinite value")
    for block, kept in run.server.items():
        own = {name: model[name] for name in kept.values if name in model}
        run.server[block] = replace(kept, values={**kept.values, **own})
    return sent


def _encoded(run: Coordinator[Any]) -> Iterator[tuple[str, Tensor]]:
    for kept in run.server.values():
        yield from ((name, t) for name, t in kept.values.items() if name in run.bound.down.forms[0])
