"""Part 4, wire: what becomes of an upload before it leaves the client, and again at the server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.method.channel import Channel
from plures.method.shares.share import Cohort
from plures.models import Leaves
from plures.models.layers import uniform

BETWEEN = 0x51ED270B
"""What the keys of one stage differ by from those of the stage before it."""


@brief
@dataclass(frozen=True)
class Sending:
    """What a stage may know of the messages that it works on.

    Attributes:
        keys: ``(clients,)`` int64 random keys, a function of seed, client, round and stage.
        received: what the clients received of the leaves that they send, by ``slot/path``, ``(clients, ...)``.
    """

    keys: Tensor
    received: Leaves

    def uniform(self, count: int) -> Tensor:
        """Random numbers in [0, 1), ``(clients, count)`` float32."""
        return uniform(self.keys.unsqueeze(1), count)


class Codec:
    """One stage of the wire: clip, add noise, sparsify, quantize, mask.

    A stage works on the change of a whole upload: of the parameters of all blocks that travel. It may turn it into
    anything that it can turn back. Stages form a chain: each encodes what the one before it sends, and the server
    decodes in reverse order. The last one's payload is what is sent and counted, in simulation and over a network.

    Running statistics and whole numbers do not pass the stages: they leave beside the payload, on the channel
    ``buffers``. Whatever else leaves a client is a :class:`~plures.method.channel.Channel`, too, which a stage may
    refuse (:meth:`refusal`) or change (:meth:`beside`).

    All tensors are stacked over clients, ``(clients, ...)``. A stage must give for each client what it gives for it
    alone, and payloads of one size.

    Attributes:
        bounds: whether the stage bounds how far an upload goes. Then no later stage may remember anything, because a
            memory would be added to what was bounded.
    """

    bounds: ClassVar[bool] = False

    def start(self, change: Leaves) -> Leaves:
        """What one client remembers before its first round; it stays with the client and is kept between rounds.

        Args:
            change: zeros of the shapes and types that the stage gets of one client, ``(1, ...)``.

        Returns:
            Tensors ``(1, ...)``; often none.
        """
        return {}

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        """What is sent, and what the clients remember.

        Args:
            change: what the stage gets, ``(clients, ...)``. For the first stage: value after local work minus value
                received, of every parameter by ``slot/path``.
            memory: what the clients remember, ``(clients, ...)``.
            sending: keys, and what the clients received.

        Returns:
            The payload, named tensors ``(clients, ...)``; and the new memory, with the names of the old one.
        """
        raise NotImplementedError

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        """What the server makes of payloads: what the stage got, as far as it can be told.

        At the server of a federation the payload is a stranger's: its names, shapes and types are those of
        :meth:`encode`, its numbers need not be.

        Args:
            payload: ``(clients, ...)``.
            like: zeros of the shapes and types that the stage got of one client, ``(1, ...)``.

        Raises:
            PluresError: if no client can have sent it.
        """
        return payload

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        """What the server makes of a block's combined change, before its own step: for example, noise after the sum.

        Args:
            change: of the block's parameters, combined minus old value, ``(rows, ...)``: one row per model.
            total: what the weighted sums were divided by, for each of these leaves a tensor that broadcasts against it:
                ``change * total`` is the sum.
            cohort: who took part, of how many, and random keys of the round and the block (``cohort.key(name)``).
        """
        return change

    def refusal(self, channel: Channel) -> str | None:
        """Why a channel must not leave a client, asked before anything trains; ``None`` if it may."""
        return None

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        """What leaves the clients in place of a channel's values ``(clients, ...)``, of the same shapes and types."""
        return values


Wire = tuple[Codec, ...]


@brief
@dataclass(frozen=True)
class Line:
    """The stages of a wire, laid for uploads of a certain form.

    Attributes:
        stages: in the order in which a client applies them.
        forms: zeros of what goes into each stage, and of the payload, ``(1, ...)``.
        memory: what a client remembers at first, ``(1, ...)``, by ``number of the stage:name``.
    """

    stages: Wire
    forms: tuple[Leaves, ...]
    memory: Leaves

    @property
    def payload(self) -> Leaves:
        """Zeros of what one client sends, ``(1, ...)``."""
        return self.forms[-1]

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        """Payload and new memory of some clients; see :meth:`Codec.encode`."""
        fresh: Leaves = {}
        for number, stage in enumerate(self.stages):
            held = f"{number}:"
            own = {k.removeprefix(held): t for k, t in memory.items() if k.startswith(held)}
            change, kept = stage.encode(change, own, replace(sending, keys=sending.keys + number * BETWEEN))
            _expect(stage, "sends", change, self.forms[number + 1])
            _expect(stage, "remembers", kept, own)
            fresh |= {held + k: t for k, t in kept.items()}
        return change, fresh

    def decode(self, payload: Leaves) -> Leaves:
        """The changes that the payloads of some clients stand for."""
        for stage, form in zip(reversed(self.stages), reversed(self.forms[:-1]), strict=True):
            payload = stage.decode(payload, form)
        return payload

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        """What leaves of a channel after all stages; see :meth:`Codec.beside`."""
        for number, stage in enumerate(self.stages):
            changed = stage.beside(channel, values, replace(sending, keys=sending.keys + number * BETWEEN))
            _expect(stage, f"sends on {channel.name!r}", changed, values)
            values = changed
        return values

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        """A block's combined change after all stages; see :meth:`Codec.release`."""
        for stage in self.stages:
            change = stage.release(change, total, cohort)
        return change


def lay(stages: Wire, change: Leaves) -> Line:
    """Lay a wire for changes of a form, by trying it on a change of zeros.

    Args:
        stages: of the wire.
        change: zeros of what one client sends, ``(1, ...)``.

    Raises:
        PluresError: if a stage is no codec, sends nothing, does not give back what it got, or remembers what would come
            on top of a bound.
    """
    forms, memory = [change], Leaves()
    for number, stage in enumerate(stages if change else ()):
        name = type(stage).__name__
        if not isinstance(stage, Codec):
            raise PluresError(f"wire stage {name} is no codec: derive it from plures.method.Codec")
        own = stage.start(change)
        if own and (bound := next((type(other).__name__ for other in stages[:number] if other.bounds), None)):
            raise PluresError(
                f"wire stage {name} adds what it remembers to a change that {bound} has bounded: put {bound} among the "
                f"stages that {name} encodes with, or after it"
            )
        keys = torch.zeros(1, dtype=torch.int64, device=next(iter(change.values())).device)
        made = stage.encode(change, own, Sending(keys, {}))
        if not (isinstance(made, tuple) and len(made) == 2 and all(map(_leaves, made))):
            raise PluresError(f"wire stage {name}: let encode return a payload and a memory, two mappings of tensors")
        payload, kept = made
        if not sum(t.nbytes for t in payload.values()):
            raise PluresError(f"wire stage {name} sends nothing of {sum(t.nbytes for t in change.values())} bytes")
        _expect(stage, "sends", payload, payload, rows=1)
        _expect(stage, "remembers", kept, own)
        _expect(stage, "decodes", stage.decode(payload, change), change)
        memory |= {f"{number}:{k}": t for k, t in own.items()}
        change = {k: torch.zeros_like(t) for k, t in payload.items()}
        forms.append(change)
    return Line(stages if change else (), tuple(forms), memory)


def _leaves(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(t, Tensor) for t in value.values())


def _expect(stage: Codec, does: str, found: Leaves, form: Leaves, rows: int | None = None) -> None:
    """Refuse what has other names, shapes or types than it must have, whatever the change."""
    name = type(stage).__name__
    if found.keys() != form.keys():
        raise PluresError(
            f"wire stage {name} {does} {sorted(found)}, not {sorted(form)}: its leaves must stay the same"
        )
    for k, t in found.items():
        if t.shape[1:] != form[k].shape[1:] or t.dtype != form[k].dtype or (rows is not None and len(t) != rows):
            raise PluresError(
                f"wire stage {name} {does} {k!r} as {t.dtype} {tuple(t.shape)}, not {form[k].dtype} "
                f"(clients, {', '.join(map(str, form[k].shape[1:]))}): it must have one size for every change"
            )


def joined(leaves: Leaves) -> Tensor:
    """Stacked leaves as one vector for each client, ``(clients, d)``, in the widest of their types."""
    parts = [t.reshape(len(t), -1) for t in leaves.values()]
    return torch.cat(parts, 1)


def parted(flat: Tensor, like: Leaves) -> Leaves:
    """The inverse of :func:`joined`.

    Args:
        flat: ``(clients, d)``.
        like: leaves of the shapes and types wanted, ``(1, ...)``.
    """
    pieces = torch.split(flat, [t[0].numel() for t in like.values()], 1)
    return {k: p.reshape(len(flat), *t.shape[1:]).to(t.dtype) for (k, t), p in zip(like.items(), pieces, strict=True)}
