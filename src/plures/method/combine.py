"""Part 5, combine: how a share's new value is computed from the uploads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.method.optimizer import SGD, Optimizer
from plures.method.shares.share import BlockState, Cohort, flatten, unflatten
from plures.method.state import State
from plures.models import Leaves


class Server(Protocol):
    """The server's step from the old value towards the combined uploads."""

    def start(self, value: Leaves) -> Leaves:
        """What the server remembers between rounds, given the initial value ``(rows, ...)``; often nothing."""

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        """New value and memory of the rows that received uploads, ``(rows, ...)``.

        Args:
            old: value that was broadcast.
            combined: the reducer's result for the uploads.
            memory: what the server remembers of these rows.
            cohort: the round's participants, the population's size, and random keys for this round and block.
        """


@dataclass(frozen=True)
class Replace:
    """The combined uploads become the new value (McMahan et al. 2017)."""

    def start(self, value: Leaves) -> Leaves:
        return {}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        return combined, memory


@dataclass(frozen=True)
class Relax:
    """``old + rate * (combined - old)``: the server learning rate, or pFedMe's beta.

    Attributes:
        rate: step length, or ``participation`` for the fraction of clients in the cohort (SCAFFOLD's control).
    """

    rate: float | Literal["participation"] = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.rate, float | int) and self.rate < 0:
            raise PluresError(f"server rate {self.rate}: it must not be negative")

    def start(self, value: Leaves) -> Leaves:
        return {}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        rate = cohort.fraction if self.rate == "participation" else float(self.rate)
        if rate == 1.0:
            return combined, memory
        moved = {k: v + rate * (combined[k] - v) if v.is_floating_point() else combined[k] for k, v in old.items()}
        return moved, memory


@dataclass(frozen=True)
class ServerOptimizer:
    """A step of an optimizer with the negative combined change as its gradient (Reddi et al. 2021, Algorithm 1).

    Attributes:
        optimizer: momentum SGD is FedAvgM (Hsu et al. 2019), Adam is FedAdam. Its state persists across rounds.
    """

    optimizer: Optimizer = field(default_factory=SGD)

    def start(self, value: Leaves) -> Leaves:
        floats = {k: t for k, t in value.items() if t.is_floating_point()}
        memory = {f"{n}:{k}": torch.zeros_like(t) for n in range(self.optimizer.slots) for k, t in floats.items()}
        return memory | {"step": torch.zeros(len(next(iter(value.values()))), dtype=torch.int64)}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        new, fresh = dict(combined), {k: t.clone() for k, t in memory.items()}
        fresh["step"] += 1
        names = [k for k, t in old.items() if t.is_floating_point()]
        for row, step in enumerate(fresh["step"].tolist()):
            values = [old[k][row].clone() for k in names]
            grads = [old[k][row] - combined[k][row] for k in names]
            state = [[fresh[f"{n}:{k}"][row] for k in names] for n in range(self.optimizer.slots)]
            self.optimizer.step(values, grads, state, self.optimizer.lr, step)
            for k, value in zip(names, values, strict=True):
                new[k] = new[k].index_copy(0, torch.tensor([row], device=value.device), value.unsqueeze(0))
        return new, fresh


Weigh = Callable[[State], Tensor | Leaves]
"""A client's weight after its local work: a scalar, or ``{path: weight}`` that broadcasts against each leaf."""


@brief
@dataclass(frozen=True, eq=False)
class Arrived:
    """What a reducer knows besides the uploads to a row.

    Attributes:
        old: ``(d,)`` the value that was sent out.
        weights: ``(n,)`` the uploads' weights.
        clients: ``(n,)`` positions of the clients.
        joint: ``(n, D)`` the change of each client's whole upload, with the parameters of all blocks concatenated, so
            that a reducer can judge a client as a whole and not block by block.
        memory: what the reducer remembers of the row, without a row axis.
        kept: what the server holds of the block.
        cohort: the round's participants, the population's size, and random keys for this round and block.
    """

    old: Tensor
    weights: Tensor
    clients: Tensor
    joint: Tensor
    memory: Leaves
    kept: BlockState
    cohort: Cohort


class Reducer:
    """How the server combines all uploads to a row: a median, Krum, and the like.

    It gets parameters only, as double-precision vectors; buffers are averaged.
    """

    def start(self, value: Tensor, population: int) -> Leaves:
        """Its initial memory, ``(rows, ...)``; often empty.

        Args:
            value: ``(rows, d)`` the initial value.
            population: number of clients.
        """
        return {}

    def check(self, clients: int) -> None:
        """Refuse, before anything is trained, a federation that it cannot work for.

        Args:
            clients: size of the federation.
        """

    def together(self, other: Reducer) -> Reducer | None:
        """Both in one, where this one prepares the uploads for the other; ``None`` if it does not."""
        return None

    def reduce(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, Leaves]:
        """The combined value ``(d,)``, and the new memory.

        Args:
            uploads: ``(n, d)``, in the order of the clients' positions.
            arrived: what else is known about them.
        """
        raise NotImplementedError


REDUCER = "reducer:"
"""Prefix of the names in a reducer's memory, which keeps them apart from those of the server's step."""


@dataclass(frozen=True)
class Combine:
    """Weights, reducer and server step of one block.

    Buffers, such as running statistics, are combined by the weighted mean, whatever the reducer and the server's step.

    Attributes:
        weights: ``examples`` (by training examples), ``uniform``, or a function of the client's state after its local
            work, whose value travels with the upload. Weights per entry may leave out buffers, which are then weighted
            by training examples.
        server: the server's step.
        reduce: how the parameters of all uploads to a row are combined, with one weight for each client; default:
            their weighted mean.
        denominator: a fixed number that divides the weighted sum of the changes; default: the sum of the weights that
            arrived. With a fixed number, an absent client only removes its own contribution.
    """

    weights: Literal["examples", "uniform"] | Weigh = "examples"
    server: Server = field(default_factory=Replace)
    reduce: Reducer | None = None
    denominator: float | None = None

    def __post_init__(self) -> None:
        if self.denominator is None:
            return
        if not 0 < self.denominator < math.inf:
            raise PluresError(f"denominator={self.denominator}: give a positive number")
        if self.reduce is not None:
            raise PluresError("a denominator belongs to a weighted mean: leave out reduce, or the denominator")

    def start(self, value: Leaves, population: int) -> Leaves:
        """Initial memory of server step and reducer, given the parameters ``(rows, ...)`` and the number of clients."""
        own = {} if self.reduce is None else self.reduce.start(flatten(value), population)
        return self.server.start(value) | {f"{REDUCER}{k}": t for k, t in own.items()}

    @property
    def linear(self) -> bool:
        """Whether a weighted sum of the uploads is all the server needs, as under secure aggregation."""
        return self.reduce is None


Masks = Mapping[str, Callable[[list[int]], Tensor]]
"""For leaves that not everybody holds whole, which entries some uploads have, by their places: bool, ``(places, ...)``
that broadcasts against them."""


COLUMNS = 8192
"""Entries of each upload summed at a time on a CPU, so that their double-precision copies stay in the cache."""


class Mean:
    """Weighted mean of stacked uploads, accumulated chunk by chunk in double precision, one row per shared model.

    The mean of one upload is that upload. Integer leaves are rounded to the nearest integer.

    Args:
        old: values that were broadcast, ``(models, ...)``; a model without uploads keeps its value.
        denominator: divisor of the weighted sum of changes, instead of the weights' sum.
        summed: leaves to which the denominator applies.
    """

    def __init__(self, old: Leaves, denominator: float | None = None, summed: Sequence[str] = ()) -> None:
        self._old, self._denominator = old, denominator
        self._summed = frozenset(summed) if denominator is not None else frozenset()
        self._sum = {k: torch.zeros(v.shape, dtype=torch.float64, device=v.device) for k, v in old.items()}
        self._weight = torch.zeros(0)
        self._masses: dict[str, Tensor] = {}

    def expect(self, weight: Tensor, model: Tensor, masks: Masks | None = None) -> None:
        """Announce all weights ``(cohort,)`` and the model that each upload goes to, before the first chunk.

        Args:
            weight: of each upload.
            model: row of the model that each goes to.
            masks: entries that each upload has; the mean of an entry is over those that have it.
        """
        models = len(next(iter(self._sum.values())))
        self._weight = torch.zeros(models, dtype=torch.float64, device=weight.device)
        self._weight.index_add_(0, model, weight.to(torch.float64))
        for k, mask in (masks or {}).items():
            self._masses[k] = torch.zeros_like(self._sum[k])
            for place, (row, one) in enumerate(zip(model.tolist(), weight.to(torch.float64), strict=True)):
                self._masses[k][row] += one * mask([place])[0]

    def add(self, uploads: Leaves, weight: Tensor, model: Tensor, masks: Masks | None = None) -> None:
        """Add a chunk of uploads ``(chunk, ...)`` with weights and models ``(chunk,)``; see :meth:`expect`."""
        masks = masks or {}
        for k, mask in masks.items():
            self._add_parts(k, uploads[k], weight, model, mask)
        whole = self._weight[model]
        share = torch.where(whole > 0, weight.to(torch.float64) / whole.clamp(min=1e-300), 0.0)
        for k, rows in uploads.items():
            if k in masks:
                continue
            flat, into = rows.reshape(len(rows), -1), self._sum[k].view(len(self._weight), -1)
            width = COLUMNS if flat.device.type == "cpu" else max(1, flat.shape[1])
            for some, total in zip(torch.split(flat, width, 1), torch.split(into, width, 1), strict=True):
                exact = some.to(torch.float64)
                if len(self._weight) == 1:
                    total += share.unsqueeze(0) @ exact
                else:
                    total.index_add_(0, model, share.unsqueeze(1) * exact)

    def _add_parts(
        self, name: str, rows: Tensor, weight: Tensor, model: Tensor, mask: Callable[[list[int]], Tensor]
    ) -> None:
        """Add uploads of a leaf that do not have all of its entries."""
        for place, (row, one) in enumerate(zip(model.tolist(), weight.to(torch.float64), strict=True)):
            mass = self._masses[name][row]
            share = torch.where(mass > 0, one / mass.clamp(min=1e-300), 0.0) * mask([place])[0]
            self._sum[name][row] += share * rows[place].to(torch.float64)

    def result(self) -> Leaves:
        """The combined value of every model, ``(models, ...)``."""
        combined = {}
        for k, old in self._old.items():
            total = self._sum[k] if old.is_floating_point() else self._sum[k].round()
            if k in self._summed and self._denominator is not None:
                part = self._mass(k, old) / self._denominator
                total = torch.where(part == 1, total, old + part * (total - old))
            combined[k] = torch.where(self._mass(k, old) > 0, total.to(old.dtype), old)
        return combined

    def _mass(self, name: str, like: Tensor) -> Tensor:
        """Joint weight of the uploads that have an entry; broadcasts against the leaf."""
        return self._masses[name] if name in self._masses else self._weight.view(-1, *(1,) * (like.dim() - 1))


def reduced(
    rule: Combine, old: Leaves, uploads: Leaves, model: Tensor, arrived: Callable[[int], Arrived]
) -> tuple[Leaves, Leaves]:
    """The reducer's result for the parameters of each row, and its new memory.

    Args:
        rule: the block's rule, which has a reducer.
        old: parameters that were broadcast, ``(models, ...)``.
        uploads: ``(cohort, ...)``.
        model: ``(cohort,)`` the model that each upload goes to.
        arrived: what is known about the uploads to a model.
    """
    assert rule.reduce is not None
    flat, whole, memory = flatten(uploads), flatten(old), list[Leaves]()
    for row in range(len(whole)):
        whole[row], kept = rule.reduce.reduce(flat[model == row], arrived(row))
        memory.append(kept)
    return unflatten(whole, old), {k: torch.stack([kept[k] for kept in memory]) for k in memory[0]}


def averaged(old: Leaves, uploads: Leaves, weights: Tensor, model: Tensor, masks: Masks | None = None) -> Leaves:
    """The weighted mean of some leaves."""
    if not old:
        return {}
    mean, masks = Mean(old), {k: mask for k, mask in (masks or {}).items() if k in old}
    mean.expect(weights, model, masks)
    mean.add({k: uploads[k] for k in old}, weights, model, masks)
    return mean.result()


def entrywise(
    old: Leaves, uploads: Leaves, weights: Mapping[str, Tensor], model: Tensor, denominator: float | None = None
) -> Leaves:
    """Weighted mean with a weight for every entry, divided by a fixed number if there is one.

    An entry without weight keeps its value.
    """
    combined = {}
    for k, before in old.items():
        weight = weights[k].to(torch.float64)
        weight = weight.reshape(*weight.shape, *(1,) * (uploads[k].dim() - weight.dim())).expand_as(uploads[k])
        total = torch.zeros(before.shape, dtype=torch.float64, device=before.device)
        mass = total.index_add(0, model, weight)
        total.index_add_(0, model, weight * uploads[k].to(torch.float64))
        value = torch.where(mass > 0, total / mass.clamp(min=1e-300), before.to(torch.float64))
        if denominator is not None:
            value = before + mass / denominator * (value - before)
        combined[k] = (value if before.is_floating_point() else value.round()).to(before.dtype)
    return combined
