"""What is accepted of an answer, and how far one client's word counts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Block, Bound, Kept, View, named
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
"""What names of weights in an upload begin with."""
OUTWEIGHS = 1e4
"""An example of one client counts, by its computed weights, at most so many times as much as one of all others."""
STANDS_OUT = 3.0
"""A client can have broken a round only if its update was so many times longer than the median of the others'; on the
word of one client alone, also so many times longer than what was sent."""
log = logging.getLogger(__name__)


class UnableError(PluresError):
    """A client answered that it could not work, or what it made of the server's state is no usable number."""


def opened(
    answer: bytes, order: bytes, longest: int | None = None, leaves: Mapping[str, Tensor] | None = None
) -> Reply:
    """Header of the answer to an order.

    Args:
        answer: as it came.
        order: as it was sent.
        longest: bytes that the answer may have without its leaves; ``None`` for any number.
        leaves: what an answer may hold beside its header.

    Raises:
        PluresError: if it is too long, which is said of it unread; damaged, no answer, or that to another order; or if
            it holds something else.
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
    """Bytes that leaves take in a message, with all that it says of them."""
    return payload(leaves) + sum(6 * len(name) + 32 * (8 + t.dim()) for name, t in leaves.items())


def fits(value: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the shape and type of another, and numbers on which arithmetic stays finite."""
    return value.shape == like.shape and value.dtype == like.dtype and bool((value.abs() <= MAX_NUMBER).all())


def received(run: Coordinator[Any], client: int, rows: Mapping[str, int], server: Mapping[str, Kept]) -> Leaves:
    """What a client received of the leaves that it sends, by ``slot/path``, ``(1, ...)``.

    Args:
        run: the run, at the server or at a site.
        client: position of the client.
        rows: which model it chose of blocks in which it chooses alone.
        server: what the server keeps.
    """
    found: Leaves = {}
    for block in run.served():
        kept, share = server[block.name], block.share
        row = torch.tensor([rows[block.name]]) if share.alone else share.row(kept, torch.tensor([client]))
        before = share.read(kept, row)
        found |= {name: before[name] for name in map(named, run.bound.travelling(block))}
    return found


def known(run: Coordinator[Any], client: int) -> Leaves:
    """What a client told last of the leaves that views read, by ``slot/path``, ``(1, ...)``."""
    return {named(leaf): run.store.get(leaf, [client]) for leaf in run.bound.told()}


def distance(run: Coordinator[Any], client: int, sent: Mapping[str, Leaves], before: Leaves) -> float:
    """How far an upload is from what was sent: the L2 norm over all leaves of floating point.

    Args:
        run: the run, at the server or at a site.
        client: position of the client.
        sent: the upload, by channel.
        before: what the client received.
    """
    old, new = known(run, client), sent.get(VIEWS, {})
    after = decoded(run.bound, sent, before)
    pairs = [(after[k], t) for k, t in before.items()] + [(new[k], t) for k, t in old.items()]
    return norm(a.double() - b.double() for a, b in pairs if b.is_floating_point())


def away(run: Coordinator[Any], client: int, tensors: Tensors, before: Leaves) -> float:
    """The same of an upload that may be anything of the right names, shapes and types.

    Raises:
        PluresError: if the wire cannot have given it.
    """
    try:
        return distance(run, client, by_channel(tensors), before)
    except (RuntimeError, LookupError, ValueError) as error:
        raise PluresError(f"bad upload: the wire cannot have given it ({type(error).__name__})") from error


def norm(leaves: Iterable[Tensor]) -> float:
    """Joint L2 norm of all that is of floating point."""
    parts = [t.double().norm() for t in leaves if t.is_floating_point()]
    return float(torch.stack(parts).norm()) if parts else 0.0


def labelled(sent: Mapping[str, Leaves]) -> Tensors:
    """What one client sends, ``(1, ...)`` by channel, as the tensors of a message: ``channel:name``."""
    return {f"{channel}:{name}": t[0] for channel in TENSORS for name, t in sent.get(channel, {}).items()}


def by_channel(tensors: Tensors) -> dict[str, Leaves]:
    """The inverse of :func:`labelled`."""
    found: dict[str, Leaves] = {channel: {} for channel in TENSORS}
    for label, t in tensors.items():
        channel, _, name = label.partition(":")
        found[channel][name] = t.unsqueeze(0)
    return found


def key(bound: Bound, block: Block, name: str) -> str:
    """What a block's leaf is called in a message."""
    return f"{bound.blocks.index(block)}:{name}"


def expected(run: Coordinator[Any]) -> dict[str, Tensor]:
    """What an upload holds: a value of the right shape and type under every name."""
    return labelled(form(run.bound))


def probed(run: Coordinator[Any]) -> Leaves:
    """The leaves of which a gradient is asked, as they are at the start."""
    return {path: run.bound.initial["model"][path] for path in run.bound.probed()}


def check(run: Coordinator[Any], like: Mapping[str, Tensor], reply: Reply, tensors: Tensors) -> None:
    """Refuse an upload that is not what was asked for (:func:`expected`)."""
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
    """Cut computed weights with which one client would count for everything (:data:`OUTWEIGHS`)."""
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
    """Who has broken the last round that counted.

    Its update stood out (:data:`STANDS_OUT`), and most of those that were to work on it now cannot. One client can
    say so as it likes, and make its own update as short as it likes. So it is not believed alone, unless the update
    was long for what had been sent: no honest one is, but where a method starts from nothing.

    Args:
        run: the coordinator.
        able: who did its work now.
        unable: who could not.
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
    """Whether a client receives a model to which another one sends."""
    pair = torch.tensor([run.setting.index(client), run.setting.index(other)])
    for block in run.bound.blocks:
        if isinstance(block.share, View) or block.share.alone:
            return True
        if block.share.served and run.bound.travelling(block):
            one, two = block.share.row(run.server[block.name], pair).tolist()
            if one == two:
                return True
    return False
