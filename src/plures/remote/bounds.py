"""Checks of answers from sites, and bounds on the influence of one client."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Block, BlockState, Bound, Leaf, Summed, View
from plures.method.channel import VIEWS, WEIGHTS
from plures.models import Leaves
from plures.remote.message import (
    MAX_COUNT,
    MAX_NUMBER,
    Reply,
    Tensors,
    clean,
    digest,
    head,
    payload,
)
from plures.run.coordinator import Coordinator
from plures.run.uploads import TENSORS, decoded, form

WEIGHT = f"{WEIGHTS}:"
"""Prefix of the names of weights in an upload."""
OUTWEIGHS = 1e4
"""Largest ratio of a client's computed weight per example to that of all others."""
STANDS_OUT = 3.0
"""A client is suspected of breaking a round only if its update was more than this many times longer than the median of
the others'. If just one client complains, it must also be this many times longer than what was sent."""
log = logging.getLogger(__name__)


class TooFewError(PluresError):
    """A round that does not count because too few clients did their work."""


class UnableError(PluresError):
    """A client answered that it could not work, or its results from the server's state are not usable numbers."""


def opened(
    answer: bytes, order: bytes, longest: int | None = None, leaves: Mapping[str, Tensor] | None = None
) -> Reply:
    """Header of the answer to an order.

    Args:
        answer: the bytes that arrived.
        order: the bytes that were sent.
        longest: most bytes that the answer may have apart from its leaves; ``None`` for any number.
        leaves: the leaves that an answer may hold.

    Raises:
        PluresError: if the answer is too long (checked before it is read), damaged, not an answer to this order, or
            holds leaves that are not allowed.
    """
    allowed = leaves or {}
    if longest is not None and len(answer) > (most := longest + size(allowed)):
        raise PluresError(f"the answer has {len(answer)} bytes, and {most} at most are needed")
    reply, names = head(answer, Reply)
    if reply.order != digest(order):
        raise PluresError("the answer is to another order than the one just sent")
    if odd := sorted(names - allowed.keys()):
        raise PluresError(f"bad upload: leaf {clean(odd[0], 200)!r} is not expected")
    return reply


def size(leaves: Mapping[str, Tensor]) -> int:
    """Upper bound on the bytes that leaves take in a message, including their entries in its header."""
    return payload(leaves) + sum(6 * len(name) + 32 * (8 + t.dim()) for name, t in leaves.items())


def fits(value: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the shape and type of another, and no value above :data:`MAX_NUMBER` or NaN."""
    return value.shape == like.shape and value.dtype == like.dtype and bool((value.abs() <= MAX_NUMBER).all())


def received(run: Coordinator[Any], client: int, rows: Mapping[str, int], server: Mapping[str, BlockState]) -> Leaves:
    """The values that a client received for the leaves that it sends, by ``slot/path``, ``(1, ...)``.

    Args:
        run: the run, at the server or at a site.
        client: position of the client.
        rows: the model that it chose, for each block in which clients choose for themselves.
        server: the server's state.
    """
    found: Leaves = {}
    for block in run.served():
        kept, share = server[block.name], block.share
        row = torch.tensor([rows[block.name]]) if share.alone else share.row(kept, torch.tensor([client]))
        before = share.read(kept, row)
        found |= {name: before[name] for name in map(str, run.bound.travelling(block))}
    return found


def known(run: Coordinator[Any], client: int) -> Leaves:
    """The values that a client last sent for the leaves that views read, by ``slot/path``, ``(1, ...)``."""
    return {str(leaf): run.store.get(leaf, [client]) for leaf in run.bound.view_inputs()}


def distance(
    run: Coordinator[Any], client: int, sent: Mapping[str, Leaves], before: Leaves, summed: Summed | None = None
) -> float:
    """How far an upload is from what was sent: the L2 norm over all floating-point leaves.

    Args:
        run: the run, at the server or at a site.
        client: position of the client.
        sent: the upload, by channel.
        before: what the client received.
        summed: for a part of a secure sum that has no masks yet: what the client knows of the sum.
    """
    old, new = known(run, client), sent.get(VIEWS, {})
    after = decoded(run.bound, sent, before, summed)
    pairs = [(after[k], t) for k, t in before.items()] + [(new[k], t) for k, t in old.items()]
    return norm(a.double() - b.double() for a, b in pairs if b.is_floating_point())


def away(run: Coordinator[Any], client: int, tensors: Tensors, before: Leaves) -> float:
    """:func:`distance` of an upload from a site, of which only names, shapes and types have been checked.

    Raises:
        PluresError: if the upload cannot be decoded.
    """
    try:
        return distance(run, client, by_channel(tensors), before)
    except (RuntimeError, LookupError, ValueError) as error:
        raise PluresError(f"bad upload: it cannot be decoded ({type(error).__name__})") from error


def norm(leaves: Iterable[Tensor]) -> float:
    """Joint L2 norm of all floating-point leaves."""
    parts = [t.double().norm() for t in leaves if t.is_floating_point()]
    return float(torch.stack(parts).norm()) if parts else 0.0


def labelled(sent: Mapping[str, Leaves]) -> Tensors:
    """Convert one client's upload, ``(1, ...)`` by channel, to the tensors of a message, named ``channel:name``."""
    return {f"{channel}:{name}": t[0] for channel in TENSORS for name, t in sent.get(channel, {}).items()}


def by_channel(tensors: Tensors) -> dict[str, Leaves]:
    """The inverse of :func:`labelled`."""
    found: dict[str, Leaves] = {channel: {} for channel in TENSORS}
    for label, t in tensors.items():
        channel, _, name = label.partition(":")
        found[channel][name] = t.unsqueeze(0)
    return found


def key(bound: Bound, block: Block, leaf: Leaf | str) -> str:
    """Name of a block's leaf in a message."""
    return f"{bound.blocks.index(block)}:{leaf}"


def expected(run: Coordinator[Any]) -> dict[str, Tensor]:
    """A template of an upload: under every name a value of the right shape and type."""
    return labelled(form(run.bound))


def probed(run: Coordinator[Any]) -> Leaves:
    """The leaves whose gradients are asked for, with their initial values."""
    return {path: run.bound.initial["model"][path] for path in run.bound.probed()}


def check(run: Coordinator[Any], like: Mapping[str, Tensor], reply: Reply, tensors: Tensors) -> None:
    """Refuse an upload that does not match what was asked for (:func:`expected`).

    Raises:
        UnableError: if a value is not finite.
        PluresError: if a leaf is missing or has another shape or type, a weight is negative or too large, or the chosen
            model does not exist.
    """
    if missing := sorted(like.keys() - tensors.keys()):
        raise PluresError(f"bad upload: leaf {missing[0]!r} is missing")
    for name, one in like.items():
        value = tensors[name]
        if value.shape != one.shape or value.dtype != one.dtype:
            raise PluresError(
                f"bad upload: {name!r} is {value.dtype} {tuple(value.shape)}, not {one.dtype} {tuple(one.shape)}"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UnableError(f"bad upload: {name!r} holds a NaN or an infinite value")
        if name.startswith(WEIGHT) and not bool((value >= 0).all()):
            raise PluresError(f"bad upload: {name!r} holds a negative weight")
        if name.startswith(WEIGHT) and not bool((value <= MAX_COUNT).all()):
            raise PluresError(f"bad upload: {name!r} holds a weight above {MAX_COUNT:g}")
    for block in run.served():
        if block.share.alone:
            row, rows = reply.rows.get(block.name, -1), len(next(iter(run.server[block.name].values.values())))
            if not 0 <= row < rows:
                raise PluresError(f"bad upload: block {block.name!r} chose model {row} of {rows}")


def balance(run: Coordinator[Any], valid: Mapping[int, tuple[Reply, Tensors]]) -> None:
    """Scale down computed weights so large that one client would decide everything (:data:`OUTWEIGHS`)."""
    examples = dict(zip(valid, run.examples(list(valid)).tolist(), strict=True))
    for block in run.served():
        prefix = f"{WEIGHT}{key(run.bound, block, '')}"
        own = {i: {n: t for n, t in tensors.items() if n.startswith(prefix)} for i, (_, tensors) in valid.items()}
        total = {i: sum(float(t.double().sum()) for t in weights.values()) for i, weights in own.items()}
        for client, weights in own.items():
            others = [i for i in own if i != client]
            most = OUTWEIGHS * sum(total[i] for i in others)
            most *= max(1.0, examples[client] / sum((examples[i] for i in others), 1e-9))
            if 0 < most < total[client]:
                name, share = run.setting.clients[client], most / total[client]
                log.warning("round %d: the weight of client %r is cut to %.3g of it", run.round, name, share)
                valid[client][1].update({n: t * share for n, t in weights.items()})


def suspect(run: Coordinator[Any], able: Collection[str], unable: Collection[str]) -> str | None:
    """Name of the client that probably broke the last round that counted, or ``None``.

    Its update stood out (:data:`STANDS_OUT`), and most of the clients that should now work on the result cannot. A
    single client could lie about that, and keep its own update as short as it likes. So one complaint alone counts only
    if the update was also long compared with what had been sent, which no honest update is unless a method starts from
    zero.

    Args:
        run: the coordinator.
        able: names of the clients that did their work now.
        unable: names of those that could not.
    """
    moved = run.moved.by
    if not moved:
        return None
    name = max(moved, key=lambda name: moved[name])
    unable = {other for other in unable if other != name and meets(run, other, name)}
    able = {other for other in able if other != name and meets(run, other, name)}
    others = [norm for other, norm in moved.items() if other != name]
    usual = median(others) if others else run.moved.sent
    if len(unable) < 2:
        usual = max(usual, run.moved.sent)
    return name if moved[name] > STANDS_OUT * usual and len(unable) > len(able) else None


def meets(run: Coordinator[Any], client: str, other: str) -> bool:
    """Whether a client receives a model to which the other contributes."""
    pair = torch.tensor([run.setting.index(client), run.setting.index(other)])
    for block in run.bound.blocks:
        if isinstance(block.share, View) or block.share.alone:
            return True
        if block.share.served and run.bound.travelling(block):
            one, two = block.share.row(run.server[block.name], pair).tolist()
            if one == two:
                return True
    return False
