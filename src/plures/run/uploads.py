"""The clients' uploads after local work, and how the server combines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.entropy import uniform
from plures.method import (
    Arrived,
    Block,
    BlockState,
    Bound,
    Cohort,
    Leaf,
    Mean,
    Summed,
    averaged,
    entrywise,
    flatten,
    put,
    reduced,
)
from plures.method.channel import BUFFERS, UPDATE, VIEWS, WEIGHTS
from plures.method.combine import REDUCER, Masks
from plures.method.sizes import Held
from plures.models import Leaves

TENSORS = (UPDATE, BUFFERS, WEIGHTS, VIEWS)
"""Channels of an answer that the ledger counts."""


@brief
@dataclass(frozen=True)
class Answer:
    """What some clients send after their local work.

    Attributes:
        clients: positions.
        sent: by channel (:mod:`plures.method.channel`), named tensors ``(clients, ...)``: the payload of the wire, or
            without one the new leaves by ``slot/path``; buffers by ``slot/path``; computed weights (:func:`weighing`);
            what views read, by ``slot/path``; and, without a name, each client's mean task loss of the visit and mean
            of what the visit minimised, ``(clients,)``.
    """

    clients: list[int]
    sent: Mapping[str, Leaves]

    @property
    def nbytes(self) -> int:
        """Bytes of the channels that the ledger counts."""
        return sum(t.nbytes for channel in TENSORS for t in self.sent.get(channel, {}).values())


def weighing(bound: Bound, block: Block, weights: Tensor | Leaves) -> Leaves:
    """Computed weights of a block as they are sent: as ``number of the block:``, with the leaf if each has its own."""
    by_leaf = {"": weights} if isinstance(weights, Tensor) else weights
    return {f"{_number(bound, block)}:{name}": t for name, t in by_leaf.items()}


def weighed(bound: Bound, block: Block, sent: Leaves) -> Tensor | Leaves | None:
    """Computed weights of a block, read from what :func:`weighing` sent; ``None`` for a block without any."""
    prefix = f"{_number(bound, block)}:"
    given = {name.removeprefix(prefix): t for name, t in sent.items() if name.startswith(prefix)}
    return given.get("", given) if given else None


def _number(bound: Bound, block: Block) -> int:
    return next(number for number, other in enumerate(bound.blocks) if other.name == block.name)


def form(bound: Bound) -> dict[str, Leaves]:
    """A template of the tensors that one client sends, by channel: the right shapes and types, ``(1, ...)``."""
    weights: Leaves = {}
    for block in bound.blocks:
        if bound.travelling(block) and callable(bound.combine(block).weights):
            weights |= weighing(bound, block, bound.weighed(block, bound.initial))

    def initial(leaves: Iterable[Leaf]) -> Leaves:
        return {str(leaf): bound.initial[leaf.slot][leaf.path].unsqueeze(0) for leaf in leaves}

    weights = {name: t.unsqueeze(0) for name, t in weights.items()}
    sent = UPDATE, BUFFERS, WEIGHTS, VIEWS
    held = bound.line.payload, initial(bound.buffers), weights, initial(bound.view_inputs())
    return dict(zip(sent, held, strict=True))


def decoded(bound: Bound, sent: Mapping[str, Leaves], received: Leaves, summed: Summed | None = None) -> Leaves:
    """The new leaves that an answer stands for, by ``slot/path``, ``(clients, ...)``.

    Args:
        bound: the method.
        sent: by channel.
        received: what the clients received of these leaves.
        summed: for one client's part of a secure sum, before its masks: what it knows of the sum.
    """
    update = sent.get(UPDATE, {})
    if summed is not None:
        whole = bound.line.total(update, summed.mass)
        update = {k: received[k] + d / float(summed.weights[0]) for k, d in whole.items()}
    elif bound.line.stages:
        update = {k: received[k] + d for k, d in bound.line.decode(update).items()}
    return {**update, **sent.get(BUFFERS, {})}


def mass(bound: Bound, examples: Tensor) -> Tensor:
    """What each upload counts in a secure sum: its training examples, or 1. All blocks count alike there.

    Args:
        bound: the method.
        examples: ``(clients,)`` in double precision.
    """
    counted = next(block for block in bound.blocks if bound.travelling(block))
    return torch.ones_like(examples) if bound.combine(counted).weights == "uniform" else examples


class Uploads:
    """The uploads of one round: decoded, counted, and combined block by block.

    Args:
        bound: the method, resolved against its network.
        server: what the server sends in this round.
        clients: the cohort.
        examples: ``(cohort,)`` their training examples, in double precision.
        began: for clients that began from an earlier version, what the server sent then, and the factor by which their
            change counts. Those that an answer holds together began from the same one.
        held: which part of the network each client holds; ``None`` if all hold all of it.

    Attributes:
        nbytes: bytes of the answers so far.
    """

    def __init__(
        self,
        bound: Bound,
        server: Mapping[str, BlockState],
        clients: list[int],
        examples: Tensor,
        began: Mapping[int, tuple[Mapping[str, BlockState], float]] | None = None,
        held: Held | None = None,
    ) -> None:
        self.bound, self.nbytes, self.began, self.held = bound, 0, began or {}, held
        sent = [block for block in bound.blocks if bound.travelling(block)]
        self.blocks = [Gathered(bound, block, server[block.name], clients, examples, held) for block in sent]
        self.judged = any(block.rule.reduce is not None for block in self.blocks)
        self.changes: list[tuple[list[int], Tensor]] = []
        self.total: Leaves = {}

    def add(self, answer: Answer) -> None:
        """Add the uploads of a chunk of clients."""
        self.nbytes += answer.nbytes - self._absent(answer)
        if self.bound.line.summed:
            self._sum(answer)
            return
        received: Leaves = {}
        stale = answer.clients[0] in self.began
        if self.bound.line.stages or self.judged or stale:
            for block in self.blocks:
                received |= block.received(answer.clients)
        values = self._moved(answer, received) if stale else decoded(self.bound, answer.sent, received)
        for block in self.blocks:
            weights = weighed(self.bound, block.block, answer.sent.get(WEIGHTS, {}))
            block.add(answer.clients, {k: values[k] for k in block.old}, weights)
        if self.judged:
            moved = [k for block in self.blocks for k in block.parameters]
            self.changes.append((answer.clients, flatten({k: values[k] - received[k] for k in moved})))

    def _moved(self, answer: Answer, current: Leaves) -> Leaves:
        """The new leaves of clients that began from an earlier version: the current ones, moved by their scaled change.

        Buffers are those that the clients send.
        """
        before: Leaves = {}
        for block in self.blocks:
            then = self.began[answer.clients[0]][0][block.block.name]
            before |= block.block.share.read(then, torch.zeros(1, dtype=torch.int64))
        before = {k: before[k].expand_as(t) for k, t in current.items()}
        scale = torch.tensor([self.began[client][1] for client in answer.clients], dtype=torch.float64)
        values = decoded(self.bound, answer.sent, before)
        for block in self.blocks:
            for k in block.parameters:
                factor = scale.to(values[k].device).reshape(-1, *(1,) * (values[k].dim() - 1))
                change = factor * (values[k].double() - before[k].double())
                values[k] = (current[k].double() + change).to(values[k].dtype)
        return values

    def _absent(self, answer: Answer) -> int:
        """Bytes of the entries that clients do not hold and did not send."""
        if self.held is None:
            return 0
        found = 0
        for leaf in self.bound.cut(leaf for block in self.bound.blocks for leaf in self.bound.travelling(block)):
            like = self.bound.initial[leaf.slot][leaf.path]
            found += like.nbytes * len(answer.clients) - self.held.nbytes(leaf.path, like, answer.clients)
        return found

    def _sum(self, answer: Answer) -> None:
        """Add up payloads that cannot be read one by one, in their own types; buffers are added as usual."""
        for name, t in answer.sent.get(UPDATE, {}).items():
            part = t.sum(0, keepdim=True, dtype=t.dtype)
            self.total[name] = self.total[name] + part if name in self.total else part
        buffers = answer.sent.get(BUFFERS, {})
        for block in self.blocks:
            block.add(answer.clients, {k: t for k, t in buffers.items() if k in block.old}, None)

    def combined(
        self, cohort: Cohort, memory: Mapping[str, Leaves], unmask: tuple[Leaves, float] | None = None
    ) -> tuple[dict[str, BlockState], dict[str, Leaves]]:
        """For every block, what the server keeps after the round, and what its step remembers.

        Args:
            cohort: the clients whose uploads were added.
            memory: what the steps remember.
            unmask: of a secure sum: the masks that are in it, by name ``(1, ...)``, and the joint weight of all clients
                that were asked.
        """
        if unmask is not None:
            masks, everybody = unmask
            changes = self.bound.line.total({k: t - masks[k] for k, t in self.total.items()}, everybody)
            for block in self.blocks:
                block.add_sum(changes)
        joint = torch.zeros(0)
        if self.changes:
            joint = torch.cat([change for _, change in self.changes])
            joint = joint[_back([some for some, _ in self.changes], joint.device)]
        common = [block for block in self.blocks if block.block.share.common and len(block.touched)]
        cohort = replace(cohort, sent={k: t for block in common for k, t in block.old.items()})
        server, remembered = {}, {}
        for block in self.blocks:
            if not len(block.touched):
                continue
            name = block.block.name
            server[name], remembered[name] = block.combined(cohort, memory[name], joint)
        return server, remembered


class Gathered:
    """The uploads of one block in one round.

    Args:
        bound: the method, resolved against its network.
        block: the block.
        kept: what the server sends of it in this round.
        clients: the cohort.
        examples: ``(cohort,)`` their training examples, in double precision.
        held: which part of the network each client holds; ``None`` if all hold all of it.
    """

    def __init__(
        self,
        bound: Bound,
        block: Block,
        kept: BlockState,
        clients: list[int],
        examples: Tensor,
        held: Held | None = None,
    ) -> None:
        self.block, self.kept, self.rule, self.line = block, kept, bound.combine(block), bound.line
        rows = block.share.row(kept, torch.tensor(clients, dtype=torch.int64))
        self.touched, index = torch.unique(rows, return_inverse=True)
        if not clients and block.share.common and self.rule.denominator is not None:
            self.touched = torch.zeros(1, dtype=torch.int64)
        self.place = dict(zip(clients, index.tolist(), strict=True))
        self.sizes = dict(zip(clients, examples.tolist(), strict=True))
        self.device = examples.device
        names = [str(leaf) for leaf in bound.travelling(block)]
        self.old = {k: t for k, t in block.share.read(kept, self.touched).items() if k in names}
        self.held = held if held is not None and held.left_out and held.cut else None
        self.partial = {} if self.held is None else {str(leaf): leaf.path for leaf in bound.cut(block.leaves)}
        self.partial = {k: path for k, path in self.partial.items() if held is not None and path in held.cut}
        self.gathered: list[tuple[list[int], Leaves, Tensor | Leaves]] = []
        self.changes: list[tuple[list[int], Tensor]] = []
        self.moved = [name for name in map(str, bound.parameters(block)) if name in names]
        self.parameters = [name for name in self.moved if self.old[name].is_floating_point()]
        self.compared = self.moved or names
        self.mean: Mean | None = None
        if not callable(self.rule.weights) and self.rule.linear:
            self.mean = self._mean()
            self.mean.expect(self._weights(clients), self._index(clients), self._masks(clients))

    def _mean(self) -> Mean:
        return Mean(self.old, self.rule.denominator, self.parameters)

    def _index(self, clients: list[int]) -> Tensor:
        return torch.tensor([self.place[i] for i in clients], dtype=torch.int64, device=self.device)

    def _weights(self, clients: list[int]) -> Tensor:
        uniform = self.rule.weights == "uniform"
        weights = [1.0 if uniform else self.sizes[i] for i in clients]
        return torch.tensor(weights, dtype=torch.float64, device=self.device)

    def _masks(self, clients: list[int]) -> Masks:
        """Which entries of the leaves that are cut some clients hold."""
        return {k: partial(self._mask, path, self.old[k][0], clients) for k, path in self.partial.items()}

    def _mask(self, path: str, like: Tensor, clients: list[int], some: list[int]) -> Tensor:
        assert self.held is not None
        return self.held.mask(path, like, [clients[place] for place in some])

    def received(self, clients: list[int]) -> Leaves:
        """The values that some clients received, ``(clients, ...)``."""
        index = self._index(clients)
        return {k: t[index] for k, t in self.old.items()}

    def add(self, clients: list[int], value: Leaves, weights: Tensor | Leaves | None) -> None:
        """Add the new leaves of a chunk of clients, with the weights that they computed, if any."""
        if self.block.share.individual:
            before = {k: self.old[k][self._index(clients)] for k in self.compared}
            self.changes.append((clients, flatten({k: value[k] for k in self.compared}) - flatten(before)))
        if self.mean is not None:
            self.mean.add(value, self._weights(clients), self._index(clients), self._masks(clients))
        else:
            self.gathered.append((clients, value, self._weights(clients) if weights is None else weights))

    def add_sum(self, changes: Leaves) -> None:
        """Add the sum of the clients' weighted changes, by leaf ``(1, ...)``, as one upload of their joint weight."""
        assert self.mean is not None
        weight = self._weights(list(self.place)).sum(0, keepdim=True)
        value = {k: self.old[k].double() + changes[k].double() / weight for k in self.parameters}
        self.mean.add(value, weight, torch.zeros(1, dtype=torch.int64, device=self.device))

    def combined(self, cohort: Cohort, memory: Leaves, joint: Tensor) -> tuple[BlockState, Leaves]:
        """What the server keeps after the round, and what its step remembers."""
        clients, share = cohort.clients.tolist(), self.block.share
        key, hidden, prefix = cohort.key, cohort.hidden, f"{self.block.name}: "
        cohort = replace(cohort, key=lambda name, *round: key(prefix + name, *round))
        if hidden is not None:
            cohort = replace(cohort, hidden=lambda name, round: hidden(prefix + name, round))
        weights: Tensor | Leaves = self._weights(clients)
        remembered = {k: t[self.touched.to(t.device)] for k, t in memory.items()}
        if self.mean is not None:
            made = self.mean.result()
        else:
            back = _back([some for some, *_ in self.gathered], self.device)
            uploads = {k: torch.cat([u[k] for _, u, *_ in self.gathered])[back] for k in self.old}
            first = self.gathered[0][2]
            if isinstance(first, Tensor):
                weights = torch.cat([w for *_, w in self.gathered if isinstance(w, Tensor)])[back]
            else:
                given = [w for *_, w in self.gathered if not isinstance(w, Tensor)]
                weights = {k: torch.cat([w[k] for w in given])[back] for k in first}
            order = sorted(clients)
            if not isinstance(weights, Tensor):
                made = self._entrywise(uploads, weights, order)
            elif self.rule.linear:
                made = self._averaged(weights, order)
            else:
                made, kept = self._reduced(uploads, weights, order, joint, cohort, remembered)
                remembered |= kept
        made = self._released(made, weights, sorted(clients), cohort)
        if self.moved:
            old, mean = ({k: values[k] for k in self.moved} for values in (self.old, made))
            own = {k: t for k, t in remembered.items() if not k.startswith(REDUCER)}
            counted = weights if isinstance(weights, Tensor) else self._weights(clients)
            moved, own = self.rule.server.step(old, mean, own, replace(cohort, weights=counted))
            made, remembered = {**made, **moved}, {**remembered, **own}
        memory = {k: put(memory[k], self.touched, t) for k, t in remembered.items()}
        changes = [change for _, change in self.changes]
        known = replace(
            cohort,
            rows=self.touched[self._index(clients).cpu()],
            weights=weights if isinstance(weights, Tensor) else self._weights(clients),
            changes=torch.cat(changes)[_back([some for some, _ in self.changes], self.device)] if changes else None,
            received=flatten({k: self.old[k] for k in self.compared}) if changes else None,
        )
        written = share.write(self.kept, self.touched, made, known)
        return replace(written, copied=()), followed(written, memory)

    def _averaged(self, weights: Tensor, clients: list[int]) -> Leaves:
        """The weighted mean of the gathered values, bit for bit equal to a mean whose weights were known in advance."""
        mean = self._mean()
        mean.expect(weights, self._index(clients), self._masks(clients))
        for chunk, value, weight in self.gathered:
            assert isinstance(weight, Tensor)
            mean.add(value, weight, self._index(chunk), self._masks(chunk))
        return mean.result()

    def _entrywise(self, uploads: Leaves, weights: Leaves, clients: list[int]) -> Leaves:
        """The mean with a weight for each entry; leaves without such weights, as buffers, by training examples."""
        index, old = self._index(clients), {k: t for k, t in self.old.items() if k in weights}
        masks, everybody = self._masks(clients), list(range(len(clients)))
        weights = {k: by_entry(w, self.old[k]) if k in masks else w for k, w in weights.items() if k in self.old}
        weights |= {k: weights[k] * mask(everybody) for k, mask in masks.items() if k in weights}
        single = entrywise(old, uploads, weights, index, self.rule.denominator)
        rest = {k: t for k, t in self.old.items() if k not in single}
        return averaged(rest, uploads, self._weights(clients), index, masks) | single

    def _reduced(
        self, uploads: Leaves, weights: Tensor, clients: list[int], joint: Tensor, cohort: Cohort, memory: Leaves
    ) -> tuple[Leaves, Leaves]:
        """The reducer's result for the parameters, with the mean of the rest; and what the reducer remembers."""
        index, known = self._index(clients), torch.tensor(clients)
        rest = averaged({k: t for k, t in self.old.items() if k not in self.parameters}, uploads, weights, index)
        if not self.parameters:
            return rest, {}
        old = {k: self.old[k] for k in self.parameters}
        flat = flatten(old)
        own = {k.removeprefix(REDUCER): t for k, t in memory.items() if k.startswith(REDUCER)}
        if (hidden := cohort.hidden) is not None:
            cohort = replace(cohort, draw=lambda name, count: uniform(hidden(f"draw {name}", cohort.round), count))

        def arrived(row: int) -> Arrived:
            here = index == row
            mine = {k: t[row] for k, t in own.items()}
            given = weights[here].to(torch.float64), known[here.cpu()], joint[here]
            return Arrived(flat[row], *given, mine, self.kept, cohort)

        made, kept = reduced(self.rule, old, {k: uploads[k] for k in old}, index, arrived)
        return rest | made, {f"{REDUCER}{k}": t for k, t in kept.items()}

    def _released(self, made: Leaves, weights: Tensor | Leaves, clients: list[int], cohort: Cohort) -> Leaves:
        """The combined value after the wire's stages at the server."""
        if not self.line.stages or not self.parameters:
            return made
        change = {k: made[k] - self.old[k] for k in self.parameters}
        index, fixed = self._index(clients), self.rule.denominator
        total: Leaves = {}
        for k, old in change.items():
            weight = (weights if isinstance(weights, Tensor) else weights[k]).to(torch.float64)
            weight = weight.reshape(*weight.shape, *(1,) * (old.dim() - weight.dim()))
            mass = weight.new_zeros(len(old), *weight.shape[1:]).index_add(0, index, weight)
            total[k] = mass if fixed is None else torch.full_like(mass, fixed)
        released = self.line.release(change, total, cohort)
        return made if released is change else made | {k: self.old[k] + d for k, d in released.items()}


def by_entry(weight: Tensor, like: Tensor) -> Tensor:
    """Weights ``(clients, ...)`` with an axis for each of a leaf's, ``(1, ...)``."""
    return weight.reshape(*weight.shape, *(1,) * (like.dim() - weight.dim()))


def _back(chunks: list[list[int]], device: torch.device) -> Tensor:
    """Position of each client of the cohort, in increasing order, in the chunk-ordered uploads."""
    order = [client for chunk in chunks for client in chunk]
    return torch.tensor(np.argsort(order), device=device)


def followed(kept: BlockState, memory: Leaves) -> Leaves:
    """What the server's step remembers, with rows for models that were added as copies of others."""
    return {k: torch.cat([t, t[list(kept.copied)]]) for k, t in memory.items()} if kept.copied else memory
