"""Part 5, combine: how a share's new value is made of the uploads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method.optimizer import SGD, Optimizer
from plures.method.share import flatten, unflatten
from plures.method.state import State
from plures.models import Leaves


class Server(Protocol):
    """The server's step from the old value towards the combined uploads."""

    def start(self, value: Leaves) -> Leaves:
        """What the server remembers between rounds, given the initial value ``(rows, ...)``; often nothing."""

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, fraction: float) -> tuple[Leaves, Leaves]:
        """New value and memory of the rows that received uploads, ``(rows, ...)``.

        Args:
            old: value that was broadcast.
            combined: what the reducer made of the uploads.
            memory: what the server remembers of these rows.
            fraction: cohort size divided by population.
        """


@dataclass(frozen=True)
class Replace:
    """The combined uploads become the new value (McMahan et al. 2017)."""

    def start(self, value: Leaves) -> Leaves:
        return {}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, fraction: float) -> tuple[Leaves, Leaves]:
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

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, fraction: float) -> tuple[Leaves, Leaves]:
        rate = fraction if self.rate == "participation" else float(self.rate)
        if rate == 1.0:
            return combined, memory
        moved = {k: v + rate * (combined[k] - v) if v.is_floating_point() else combined[k] for k, v in old.items()}
        return moved, memory


@dataclass(frozen=True)
class ServerOptimizer:
    """A step of an optimizer with the negative combined change as its gradient (Reddi et al. 2021, Algorithm 1).

    Attributes:
        optimizer: momentum SGD is FedAvgM (Hsu et al. 2019), Adam is FedAdam. Its state stays over the rounds.
    """

    optimizer: Optimizer = field(default_factory=SGD)

    def start(self, value: Leaves) -> Leaves:
        floats = {k: t for k, t in value.items() if t.is_floating_point()}
        memory = {f"{n}:{k}": torch.zeros_like(t) for n in range(self.optimizer.slots) for k, t in floats.items()}
        return memory | {"step": torch.zeros(len(next(iter(value.values()))), dtype=torch.int64)}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, fraction: float) -> tuple[Leaves, Leaves]:
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

Reduce = Callable[[Tensor, Tensor], Tensor]
"""``(uploads (n, d), weights (n,)) -> (d,)`` in double precision: the place of medians, Krum, and the like."""


@dataclass(frozen=True)
class Combine:
    """Weights, reducer and server step of one block.

    Buffers, such as running statistics, are combined by the weighted mean, whatever the reducer and the server's step.

    Attributes:
        weights: ``examples`` (by training examples), ``uniform``, or a function of the client's state after its local
            work: what it reads travels with the upload. Weights of single entries may leave buffers out, which then
            count by training examples.
        server: the server's step.
        reduce: what is made of the parameters of all uploads to a row, with one weight for each client; default: their
            weighted mean.
    """

    weights: Literal["examples", "uniform"] | Weigh = "examples"
    server: Server = field(default_factory=Replace)
    reduce: Reduce | None = None

    @property
    def linear(self) -> bool:
        """Whether a weighted sum of the uploads is all the server needs, as under secure aggregation."""
        return self.reduce is None


class Mean:
    """Weighted mean of stacked uploads, accumulated chunk by chunk in double precision, one row per shared model.

    The mean of one upload is that upload. Integer leaves are rounded to the nearest integer.

    Args:
        old: values that were broadcast, ``(models, ...)``; a model without uploads keeps its value.
    """

    def __init__(self, old: Leaves) -> None:
        self._old = old
        self._sum = {k: torch.zeros(v.shape, dtype=torch.float64, device=v.device) for k, v in old.items()}
        self._weight = torch.zeros(0)

    def expect(self, weight: Tensor, model: Tensor) -> None:
        """Announce all weights ``(cohort,)`` and the model that each upload goes to, before the first chunk."""
        models = len(next(iter(self._sum.values())))
        self._weight = torch.zeros(models, dtype=torch.float64, device=weight.device)
        self._weight.index_add_(0, model, weight.to(torch.float64))

    def add(self, uploads: Leaves, weight: Tensor, model: Tensor) -> None:
        """Add a chunk of uploads ``(chunk, ...)`` with weights and models ``(chunk,)``."""
        total = self._weight[model]
        share = torch.where(total > 0, weight.to(torch.float64) / total.clamp(min=1e-300), 0.0)
        for k, rows in uploads.items():
            flat = rows.reshape(len(rows), -1).to(torch.float64)
            into = self._sum[k].view(len(self._weight), -1)
            if len(self._weight) == 1:
                into += share.unsqueeze(0) @ flat
            else:
                into.index_add_(0, model, share.unsqueeze(1) * flat)

    def result(self) -> Leaves:
        """The combined value of every model, ``(models, ...)``."""
        received = self._weight > 0
        combined = {}
        for k, old in self._old.items():
            total = self._sum[k] if old.is_floating_point() else self._sum[k].round()
            mask = received.view(-1, *(1,) * (old.dim() - 1))
            combined[k] = torch.where(mask, total.to(old.dtype), old)
        return combined


def reduced(
    rule: Combine,
    old: Leaves,
    uploads: Leaves,
    weights: Tensor | Mapping[str, Tensor],
    model: Tensor,
    *,
    examples: Tensor,
    moved: Sequence[str],
) -> Leaves:
    """What a rule makes of all uploads at once, where they had to be gathered.

    Args:
        rule: the block's rule.
        old: values that were broadcast, ``(models, ...)``.
        uploads: ``(cohort, ...)``.
        weights: ``(cohort,)``, or by leaf ``(cohort, ...)`` for weights of single entries.
        model: ``(cohort,)`` the model that each upload goes to.
        examples: ``(cohort,)`` weights of what has none of its own.
        moved: the leaves that are no buffers, which the reducer gets.
    """
    if not isinstance(weights, Tensor):
        entries = [k for k in old if k in weights]
        single = _entrywise({k: old[k] for k in entries}, uploads, weights, model)
        return _averaged({k: t for k, t in old.items() if k not in single}, uploads, examples, model) | single
    parameters = {k: old[k] for k in moved}
    if rule.reduce is None or not parameters:
        return _averaged(old, uploads, weights, model)
    flat, whole = flatten({k: uploads[k] for k in moved}), flatten(parameters)
    for row in torch.unique(model).tolist():
        here = model == row
        whole[row] = rule.reduce(flat[here], weights[here].to(torch.float64))
    rest = _averaged({k: t for k, t in old.items() if k not in parameters}, uploads, weights, model)
    return rest | unflatten(whole, parameters)


def _averaged(old: Leaves, uploads: Leaves, weights: Tensor, model: Tensor) -> Leaves:
    """The weighted mean of some leaves."""
    if not old:
        return {}
    mean = Mean(old)
    mean.expect(weights, model)
    mean.add({k: uploads[k] for k in old}, weights, model)
    return mean.result()


def _entrywise(old: Leaves, uploads: Leaves, weights: Mapping[str, Tensor], model: Tensor) -> Leaves:
    """Weighted mean with a weight for every entry; an entry without weight keeps its value."""
    combined = {}
    for k, before in old.items():
        weight = weights[k].to(torch.float64)
        weight = weight.reshape(*weight.shape, *(1,) * (uploads[k].dim() - weight.dim())).expand_as(uploads[k])
        total = torch.zeros(before.shape, dtype=torch.float64, device=before.device)
        mass = total.index_add(0, model, weight)
        total.index_add_(0, model, weight * uploads[k].to(torch.float64))
        value = torch.where(mass > 0, total / mass.clamp(min=1e-300), before.to(torch.float64))
        combined[k] = (value if before.is_floating_point() else value.round()).to(before.dtype)
    return combined
