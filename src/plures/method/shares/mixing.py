"""A model of every client at the server, mixed by a matrix; and views of the others' models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.brief import brief
from plures.method.setting import Setting
from plures.method.shares.share import (
    BlockState,
    Cohort,
    Frozen,
    Inherit,
    Probe,
    Share,
    Shared,
    blended,
    flatten,
    put,
    unflatten,
)
from plures.method.tree import fixed
from plures.models import Leaves, Marked

if TYPE_CHECKING:
    from plures.method.layout import LayoutKey

VISITED = "visited"

Mixing = Callable[[Tensor, Cohort], Tensor]
"""``(models (population, d), cohort) -> (population, population)``; row i holds the weights of client i's new model."""


@dataclass(frozen=True)
class Mixed(Share):
    """Every client has its own model, which the server keeps and mixes with the others' after each round.

    ``X[i] <- sum_j M_ij X[j]`` for the clients ``i`` of the cohort. Running statistics are not mixed: each client keeps
    those of its own inputs. Absent clients keep their model, which still counts where the matrix gives it weight; so a
    matrix with equal rows is FedAvg only if all clients take part. The identity is local training, a block-diagonal
    matrix makes clusters.

    Attributes:
        matrix: the mixing matrix, given all models; ``None`` for none.
        unseen: how newcomers' models are made from those of the clients that took part; default: their uniform mean.
    """

    matrix: Mixing | None = None
    unseen: Inherit | None = None
    travels: ClassVar[bool] = True
    served: ClassVar[bool] = True
    individual: bool = True

    def start(self, initial: Leaves, fresh: Callable[[int], Leaves], setting: Setting) -> BlockState:
        values = {k: t.expand(len(setting), *t.shape).clone() for k, t in initial.items()}
        return BlockState(values, {VISITED: torch.zeros(len(setting), dtype=torch.bool)})

    def row(self, kept: BlockState, clients: Tensor) -> Tensor:
        return clients

    def read(self, kept: BlockState, rows: Tensor) -> Leaves:
        return {k: t[rows.to(t.device)] for k, t in kept.values.items()}

    def write(self, kept: BlockState, rows: Tensor, values: Leaves, cohort: Cohort) -> BlockState:
        kept = replace(kept, extra={**kept.extra, VISITED: kept.extra[VISITED].index_fill(0, rows.cpu(), True)})
        kept = super().write(kept, rows, values, cohort)
        if self.matrix is None:
            return kept
        flat = flatten(kept.marked())
        weights = self.matrix(flat, cohort).to(flat)[rows]
        own = kept.marked(self.read(kept, rows))
        return super().write(kept, rows, unflatten(weights @ flat, own), cohort)

    def downloads(self, setting: Setting) -> int:
        """Without mixing a client already has what it uploaded, so it receives nothing."""
        return int(self.matrix is not None)

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> BlockState:
        """Newcomers start from a combination of the models of the clients that took part, or from the initial one.

        Their running statistics start from the uniform mean.
        """
        took_part = kept.extra[VISITED].nonzero().squeeze(1)
        seen = took_part if len(took_part) else torch.arange(len(kept.extra[VISITED]))
        even = weights = torch.full((len(setting), len(seen)), 1 / len(seen), dtype=torch.float64)
        if self.unseen is not None and setting.joins is not None:
            weights = self.unseen(setting.joins.take(seen.tolist()), setting)
        values = {
            k: blended(t[seen.to(t.device)], even if k in kept.buffers else weights) for k, t in kept.values.items()
        }
        return BlockState(values, buffers=kept.buffers)

    def tune(self, kept: BlockState, rows: Tensor, values: Leaves) -> BlockState:
        return replace(kept, values={**kept.values, **{k: put(kept.values[k], rows, v) for k, v in values.items()}})

    def local(self) -> Share:
        return Shared() if self.matrix is not None else Mine()

    @property
    def own_row(self) -> bool:
        return True


@dataclass(frozen=True)
class Mine(Shared):
    """A client's row of an unmixed share at the client: what it sent last, so it need not be sent back."""


@brief
@dataclass(frozen=True, eq=False)
class Look:
    """What a view may depend on.

    Attributes:
        clients: ``(clients,)`` positions of the viewing clients in the population, or -1 for newcomers.
        values: the leaves seen, ``(population, ...)``.
        states: what the clients hold, ``slot -> path -> (clients, ...)``.
        population: facts about the clients seen.
        round: number of the round, from 0.
        draw: ``draw(name)`` returns uniform numbers ``(clients, population)`` of this round.
    """

    clients: Tensor
    values: Leaves
    states: Mapping[str, Leaves]
    population: Setting
    round: int
    draw: Callable[[str], Tensor]

    @cached_property
    def models(self) -> Tensor:
        """The parameters of all models, ``(population, d)`` in double precision."""
        return flatten(self.values)

    def own_models(self, slot: str) -> Tensor:
        """The same for what each client holds in a slot, ``(clients, d)``."""
        held = self.states[slot]
        return flatten(Marked({k: held[k] for k in self.values}, fixed(self.values)))

    @property
    def own(self) -> Tensor:
        """``(clients, population)`` True where a client would see itself."""
        return self.clients[:, None] == torch.arange(len(self.population))


@dataclass(frozen=True)
class View(Share):
    """A client's read-only view of the others' models, rebuilt by the server whenever it is needed.

    Newcomers see the models of the clients they join. Leaves that do not leave a client are seen with its own values.

    Attributes:
        of: the slot that is seen, whose leaves lie in a :class:`Mixed` share; ``None`` for the ``weights`` themselves,
            the only leaf of the slot, which say whose models a client sees.
        weights: ``(look) -> (clients, population)`` for one combination of the models, or
            ``(clients, count, population)`` for several; one-hot rows are single models.
        count: number of combinations, a leading axis of the leaves, possibly a function of the federation's facts;
            ``None`` for one without that axis.
        reads: the client's own slots on which the weights depend; those that would stay with the client are sent to the
            server with every upload.
    """

    of: str | None
    weights: Callable[[Look], Tensor]
    count: int | Callable[[Setting], int] | None = None
    reads: tuple[str, ...] = ()

    def local(self) -> Share:
        return Seen(self.of)

    def leaves(self, seen: Leaves, setting: Setting) -> Leaves:
        """The slot's leaves before anything is seen.

        Args:
            seen: initial leaves of the slot that is seen.
            setting: facts about the federation.
        """
        count = self.count(setting) if callable(self.count) else self.count
        axes = () if count is None else (count,)
        if self.of is None:
            return {"weights": torch.zeros(*axes, len(setting), dtype=setting.fact("examples").dtype)}
        return {k: t.expand((*axes, *t.shape)) for k, t in seen.items()}

    def seen(self, look: Look) -> Leaves:
        """What each viewing client sees, ``(clients, ...)``."""
        weights = self.weights(look)
        if self.of is None:
            return {"weights": weights.to(look.population.fact("examples"))}
        seen = {k: blended(t, weights) for k, t in look.values.items()}
        own = {k: t for k, t in look.states[self.of].items() if k not in seen}
        axes = weights.shape[1:-1]
        return seen | {
            k: t.view(len(t), *(1 for _ in axes), *t.shape[1:]).expand(len(t), *axes, *t.shape[1:])
            for k, t in own.items()
        }


@dataclass(frozen=True)
class Seen(Frozen):
    """A view at a single client: what it was sent.

    Attributes:
        of: the slot that is seen.
    """

    of: str | None


def best_others(
    of: str,
    worth: Callable[[Look], Tensor],
    count: int | None = None,
    explore: Callable[[int], float] = lambda round: 0.0,
    reads: tuple[str, ...] = (),
) -> dict[LayoutKey, Share]:
    """Two slots of a layout: ``others``, the models of some other clients, and ``whose`` they are (``weights``).

    Args:
        of: the slot that is seen.
        worth: ``(look) -> (clients, population)``; clients with the largest worth are seen, ties in random order.
        count: how many; default: all others. Newcomers see as many.
        explore: ``(round) -> probability`` that each of them is replaced by a random one.
        reads: the client's own slots that ``worth`` reads.
    """

    def some(setting: Setting) -> int:
        return len(setting) - 1 if count is None else min(count, len(setting) - 1)

    def choose(look: Look) -> Tensor:
        number, order = some(look.population), look.draw("order").masked_fill(look.own, 2.0).argsort(1)
        random = (look.draw("explore")[:, :number] < explore(look.round)).sum(1, keepdim=True)
        value = worth(look).cpu().masked_fill(order.argsort(1) < random, torch.inf).masked_fill(look.own, -torch.inf)
        ranked = value.gather(1, order).argsort(dim=1, descending=True, stable=True)
        return F.one_hot(order.gather(1, ranked)[:, :number], len(look.population))

    return {"others": View(of, choose, some, reads), "whose": View(None, choose, some, reads)}


def mean(rows: Tensor) -> Tensor:
    """Uniform mean over rows, of the same type."""
    value = rows.to(torch.float64).mean(0)
    return (value if rows.is_floating_point() else value.round()).to(rows.dtype)
