"""Part 4, wire: how an upload is encoded before it leaves the client, and decoded at the server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.entropy import Entropy, Secret, normal, normal_of
from plures.entropy import uniform as secret
from plures.errors import PluresError
from plures.method.channel import Channel
from plures.method.shares.share import Cohort
from plures.models import Leaves
from plures.models.layers import uniform

BETWEEN = 0x51ED270B
"""Offset between the random keys of consecutive stages."""


class BeyondError(PluresError):
    """A change with a number that a stage of the wire cannot carry."""


@brief
@by_content
@dataclass(frozen=True)
class Summed:
    """What clients know of the sum that their payloads become part of.

    Attributes:
        weights: ``(clients,)`` double: what each upload counts in the sum: its training examples, or 1.
        mass: the joint weight of all clients that are asked in this round.
    """

    weights: Tensor
    mass: float


@brief
@by_content
@dataclass(frozen=True)
class Sending:
    """What a stage knows about the messages that it works on.

    Attributes:
        keys: ``(clients,)`` int64 random keys, a function of seed, client, round and stage.
        received: what the clients received of the leaves that they send, by ``slot/path``, ``(clients, ...)``.
        summed: what a stage whose payloads are added up (:attr:`Codec.sums`) knows beside; ``None`` for other wires.
        entropy: random bytes that only the client knows, at a site; ``None`` in a simulation, where everything follows
            from the keys.
    """

    keys: Tensor
    received: Leaves
    summed: Summed | None = None
    entropy: Entropy | None = None

    def uniform(self, count: int) -> Tensor:
        """Random numbers in [0, 1), ``(clients, count)`` float32."""
        return uniform(self.keys.unsqueeze(1), count)

    def coins(self, count: int) -> Tensor:
        """Random numbers in [0, 1) that nobody but the client knows, ``(clients, count)`` double.

        In a simulation they follow from the keys.
        """
        return torch.stack([secret(source, count) for source in self.sources()]).to(self.keys.device)

    def sources(self) -> list[Entropy]:
        """Random bytes of each client that nobody else knows; in a simulation they follow from its key."""
        if self.entropy is not None:
            return [self.entropy] * len(self.keys)
        return [Secret(key.to_bytes(8, "big", signed=True)).of("client") for key in self.keys.tolist()]

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers that nobody but the client knows, ``(clients, count)`` double.

        In a simulation they follow from the keys.
        """
        if self.entropy is not None:
            return normal(self.entropy, len(self.keys), count).to(self.keys.device)
        return torch.stack([normal_of(key, count) for key in self.keys.tolist()]).to(self.keys.device)


class Codec:
    """One stage of the wire: clip, add noise, sparsify, quantize, mask.

    A stage works on the change of a whole upload: of the parameters of all blocks that travel. It may encode it in
    any form that it can decode. Stages form a chain: each encodes what the one before it sends, and the server
    decodes in reverse order. The last one's payload is what is sent and counted, in simulation and over a network.

    Running statistics and integers do not pass the stages: they leave beside the payload, on the channel
    ``buffers``. Whatever else leaves a client is a :class:`~plures.method.channel.Channel`, too, which a stage may
    refuse (:meth:`refusal`) or change (:meth:`beside`).

    All tensors are stacked over clients, ``(clients, ...)``. A client's result must not depend on the other clients in
    the stack, and all payloads must have the same size.

    Attributes:
        bounds: whether the stage bounds the norm of an upload. Then no later stage may have a memory, because it would
            be added to what was bounded.
        sums: whether the server reads only the sum of the payloads, as in secure aggregation. Such a stage comes last,
            and every stage before it must have :meth:`total`. It sends int32 alone; clients add their masks to it, and
            sums wrap around, modulo ``2 ** 32``.
        down: whether the stage is for what the server sends to clients, and not for what they send.
        share: of a stage that sums: more than this share of the clients that are asked must stay to the end.
    """

    bounds: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    down: ClassVar[bool] = False
    share: float = 0.5

    @property
    def lengthens(self) -> bool:
        """Whether it sends more than there is, so that its error may be longer than the change itself."""
        return False

    def behind(self, before: Wire) -> Wire:
        """The wire if this stage is joined to those before it."""
        return (*before, self)

    def start(self, change: Leaves) -> Leaves:
        """One client's initial memory, which stays with the client and is kept between rounds.

        Args:
            change: zeros of the shapes and types of the stage's input for one client, ``(1, ...)``.

        Returns:
            Tensors ``(1, ...)``; often none.
        """
        return {}

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        """The payload to send, and the clients' new memory.

        Args:
            change: the stage's input, ``(clients, ...)``. For the first stage: value after local work minus value
                received, of every parameter by ``slot/path``.
            memory: what the clients remember, ``(clients, ...)``.
            sending: keys, and what the clients received.

        Returns:
            The payload, named tensors ``(clients, ...)``; and the new memory, with the names of the old one.
        """
        raise NotImplementedError

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        """Recover the stage's input from payloads, as far as possible.

        On the server of a deployed federation the payload is untrusted: its names, shapes and types are those of
        :meth:`encode`, but its numbers may be anything.

        Args:
            payload: ``(clients, ...)``.
            like: zeros of the shapes and types of the stage's input for one client, ``(1, ...)``.

        Raises:
            PluresError: if no client can have sent it.
        """
        return payload

    def total(self, payload: Leaves, like: Leaves, mass: float) -> Leaves:
        """What the server makes of a sum of payloads: the sum of each client's change times its weight.

        It replaces :meth:`decode` where the last stage :attr:`sums`. "Change" is what the stage got.

        Args:
            payload: the sum without masks, ``(1, ...)``.
            like: zeros of the shapes and types that the stage got of one client, ``(1, ...)``.
            mass: the joint weight of all clients that were asked, as in :attr:`Summed.mass`.
        """
        raise NotImplementedError

    @property
    def adds(self) -> bool:
        """Whether the server can decode a sum of payloads."""
        return type(self).total is not Codec.total

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        """Change a block's combined change before the server's step, for example by adding noise to the sum.

        Args:
            change: of the block's parameters, combined minus old value, ``(rows, ...)``: one row per model.
            total: divisors of the weighted sums, for each of these leaves a tensor that broadcasts against it:
                ``change * total`` is the sum.
            cohort: the round's participants, the population's size, and random keys for this round and block
                (``cohort.key(name)``).
        """
        return change

    def refusal(self, channel: Channel) -> str | None:
        """Why a channel must not leave a client, asked before anything trains; ``None`` if it may."""
        return None

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        """Replacement for a channel's values ``(clients, ...)`` before they leave, of the same shapes and types."""
        return values


Wire = tuple[Codec, ...]


def enough(clients: int, share: float) -> int:
    """How many of the clients that are asked must come for a secure sum: more than a share of them, at least two.

    Examples:
        >>> [enough(n, 1 / 2) for n in (3, 5, 10, 100)], [enough(n, 2 / 3) for n in (3, 5, 10, 100)]
        ([2, 3, 6, 51], [3, 4, 7, 67])
    """
    return max(2, int(share * clients + 1e-9) + 1)


def wired(first: Wire, second: Wire) -> Wire:
    """The stages of one method, then those of another."""
    for stage in second:
        first = stage.behind(first)
    return first


@brief
@by_content
@dataclass(frozen=True)
class Line:
    """The stages of a wire, prepared for uploads of certain shapes and types.

    Attributes:
        stages: in the order in which a client applies them.
        forms: zeros of what goes into each stage, and of the payload, ``(1, ...)``.
        memory: a client's initial memory, ``(1, ...)``, by ``number of the stage:name``.
    """

    stages: Wire
    forms: tuple[Leaves, ...]
    memory: Leaves

    @property
    def payload(self) -> Leaves:
        """Zeros of what one client sends, ``(1, ...)``."""
        return self.forms[-1]

    @property
    def summed(self) -> bool:
        """Whether the server reads only the sum of the payloads."""
        return bool(self.stages) and self.stages[-1].sums

    def enough(self, asked: int) -> int:
        """How many of the clients that are asked must come for a round to count; see :func:`enough`."""
        return enough(asked, self.stages[-1].share) if self.summed else 0

    def total(self, payload: Leaves, mass: float) -> Leaves:
        """The weighted sum of changes that a sum of payloads ``(1, ...)`` stands for; see :meth:`Codec.total`."""
        for stage, form in zip(reversed(self.stages), reversed(self.forms[:-1]), strict=True):
            payload = stage.total(payload, form, mass)
            _expect(stage, "makes of a sum", payload, form)
        return payload

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
        """A channel's values as they leave after all stages; see :meth:`Codec.beside`."""
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
    """Prepare a wire for changes of certain shapes and types, by trying it on a change of zeros.

    Args:
        stages: of the wire.
        change: zeros of what one client sends, ``(1, ...)``.

    Raises:
        PluresError: if a stage is not a codec, sends nothing, does not decode to the form of its input, or has a memory
            that would be added to a bounded change.
    """
    forms, memory = [change], Leaves()
    for number, stage in enumerate(stages if change else ()):
        name = type(stage).__name__
        if not isinstance(stage, Codec):
            raise PluresError(f"wire stage {name} is not a codec: derive it from plures.method.Codec")
        own = stage.start(change)
        if own and (bound := next((type(other).__name__ for other in stages[:number] if other.bounds), None)):
            raise PluresError(
                f"wire stage {name} adds what it remembers to a change that {bound} has bounded: put {bound} among the "
                f"stages that {name} encodes with, or after it"
            )
        if stage.sums and number + 1 < len(stages):
            after = type(stages[number + 1]).__name__
            raise PluresError(f"wire stage {name} gives the server a sum alone: put {after} before it")
        if not stage.adds and stages[-1].sums:
            last = type(stages[-1]).__name__
            raise PluresError(
                f"wire stage {name}: its payloads cannot be added up, which {last} does: leave one of them out"
            )
        keys = torch.zeros(1, dtype=torch.int64, device=next(iter(change.values())).device)
        alone = Summed(keys.double() + 1, 1.0)
        made = stage.encode(change, own, Sending(keys, {}, alone))
        if not (isinstance(made, tuple) and len(made) == 2 and all(map(_leaves, made))):
            raise PluresError(f"wire stage {name}: let encode return a payload and a memory, two mappings of tensors")
        payload, kept = made
        if stage.sums and any(t.dtype != torch.int32 for t in payload.values()):
            raise PluresError(f"wire stage {name}: masks are added to int32; send nothing else")
        if not sum(t.nbytes for t in payload.values()):
            raise PluresError(f"wire stage {name} sends nothing of {sum(t.nbytes for t in change.values())} bytes")
        _expect(stage, "sends", payload, payload, rows=1)
        _expect(stage, "remembers", kept, own)
        if stages[-1].sums:
            _expect(stage, "makes of a sum", stage.total(payload, change, 1.0), change)
        else:
            _expect(stage, "decodes", stage.decode(payload, change), change)
        memory |= {f"{number}:{k}": t for k, t in own.items()}
        change = {k: torch.zeros_like(t) for k, t in payload.items()}
        forms.append(change)
    return Line(stages if change else (), tuple(forms), memory)


def _leaves(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(t, Tensor) for t in value.values())


def _expect(stage: Codec, does: str, found: Leaves, form: Leaves, rows: int | None = None) -> None:
    """Refuse leaves whose names, shapes or types are not those of ``form``."""
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
