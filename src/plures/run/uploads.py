"""What clients send after their local work, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.method import Block, Bound, Cohort, Kept, Mean, flatten, named, put, reduced
from plures.models import Leaves


@brief
@dataclass(frozen=True)
class Answer:
    """What some clients send after their local work, one row per client.

    Attributes:
        clients: positions.
        values: for every block that travels, the new leaves by ``slot/path``, ``(clients, ...)``, after the wire.
        weights: for blocks whose weights the clients compute: ``(clients,)``, or by leaf ``(clients, ...)``.
        loss: ``(clients,)`` mean task loss of the visit.
        objective: ``(clients,)`` mean of what the visit minimised.
    """

    clients: list[int]
    values: Mapping[str, Leaves]
    weights: Mapping[str, Tensor | Leaves]
    loss: Tensor
    objective: Tensor


class Uploads:
    """The uploads of one block in one round.

    Args:
        bound: the method, resolved against its network.
        block: the block.
        kept: what the server sends of it in this round.
        clients: the cohort.
        examples: ``(cohort,)`` their training examples, in double precision.
    """

    def __init__(self, bound: Bound, block: Block, kept: Kept, clients: list[int], examples: Tensor) -> None:
        self.block, self.kept, self.rule = block, kept, bound.combine(block)
        rows = block.share.row(kept, torch.tensor(clients))
        self.touched, index = torch.unique(rows, return_inverse=True)
        self.place = dict(zip(clients, index.tolist(), strict=True))
        self.sizes = dict(zip(clients, examples.tolist(), strict=True))
        self.device = examples.device
        names = [named(leaf) for leaf in bound.travelling(block)]
        self.old = {k: t for k, t in block.share.read(kept, self.touched).items() if k in names}
        self.gathered: list[tuple[list[int], Leaves, Tensor | Leaves]] = []
        self.changes: list[tuple[list[int], Tensor]] = []
        self.moved = [name for name in map(named, bound.parameters(block)) if name in names]
        self.compared = self.moved or names
        self.mean: Mean | None = None
        if not callable(self.rule.weights) and self.rule.linear:
            self.mean = Mean(self.old)
            self.mean.expect(self._weights(clients), self._index(clients))

    def _index(self, clients: list[int]) -> Tensor:
        return torch.tensor([self.place[i] for i in clients], device=self.device)

    def _weights(self, clients: list[int]) -> Tensor:
        uniform = self.rule.weights == "uniform"
        weights = [1.0 if uniform else self.sizes[i] for i in clients]
        return torch.tensor(weights, dtype=torch.float64, device=self.device)

    def add(self, answer: Answer) -> None:
        """Add what a chunk of clients sends."""
        clients, value = answer.clients, answer.values[self.block.name]
        if self.block.share.individual:
            before = {k: self.old[k][self._index(clients)] for k in self.compared}
            self.changes.append((clients, flatten({k: value[k] for k in self.compared}) - flatten(before)))
        if self.mean is not None:
            self.mean.add(value, self._weights(clients), self._index(clients))
        else:
            self.gathered.append((clients, value, answer.weights.get(self.block.name, self._weights(clients))))

    def combined(self, cohort: Cohort, memory: Leaves) -> tuple[Kept, Leaves]:
        """What the server keeps after the round, and what its step remembers."""
        clients, share = cohort.clients.tolist(), self.block.share
        weights: Tensor | Leaves = self._weights(clients)
        if self.mean is not None:
            made = self.mean.result()
        else:
            back = self._back([some for some, *_ in self.gathered])
            uploads = {k: torch.cat([u[k] for _, u, *_ in self.gathered])[back] for k in self.old}
            first = self.gathered[0][2]
            if isinstance(first, Tensor):
                weights = torch.cat([w for *_, w in self.gathered if isinstance(w, Tensor)])[back]
            else:
                given = [w for *_, w in self.gathered if not isinstance(w, Tensor)]
                weights = {k: torch.cat([w[k] for w in given])[back] for k in first}
            if isinstance(weights, Tensor) and self.rule.linear:
                made = self._averaged(weights, sorted(clients))
            else:
                order = sorted(clients)
                by_size, index = self._weights(order), self._index(order)
                made = reduced(self.rule, self.old, uploads, weights, index, examples=by_size, moved=self.moved)
        remembered = {k: t[self.touched.to(t.device)] for k, t in memory.items()}
        if self.moved:
            old, mean = ({k: values[k] for k in self.moved} for values in (self.old, made))
            moved, remembered = self.rule.server.step(old, mean, remembered, cohort.fraction)
            made = {**made, **moved}
        memory = {k: put(memory[k], self.touched, t) for k, t in remembered.items()}
        changes = [change for _, change in self.changes]
        known = replace(
            cohort,
            rows=self.touched[self._index(clients).cpu()],
            weights=weights if isinstance(weights, Tensor) else self._weights(clients),
            changes=torch.cat(changes)[self._back([some for some, _ in self.changes])] if changes else None,
            received=flatten({k: self.old[k] for k in self.compared}) if changes else None,
        )
        written = share.write(self.kept, self.touched, made, known)
        return replace(written, copied=()), followed(written, memory)

    def _averaged(self, weights: Tensor, clients: list[int]) -> Leaves:
        """The weighted mean of what was gathered, with the bits of a mean whose weights were known before."""
        mean = Mean(self.old)
        mean.expect(weights, self._index(clients))
        for chunk, value, weight in self.gathered:
            assert isinstance(weight, Tensor)
            mean.add(value, weight, self._index(chunk))
        return mean.result()

    def _back(self, chunks: list[list[int]]) -> Tensor:
        """Position of each client in the chunk-ordered uploads."""
        order = [client for chunk in chunks for client in chunk]
        return torch.tensor(np.argsort(order), device=self.device)


def followed(kept: Kept, memory: Leaves) -> Leaves:
    """What the server's step remembers, with rows for models that were added as copies of others."""
    return {k: torch.cat([t, t[list(kept.copied)]]) for k, t in memory.items()} if kept.copied else memory
