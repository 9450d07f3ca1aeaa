"""Clustered shares: several models, and rules that say which client uses which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method.response import Response, response
from plures.method.setting import Setting
from plures.method.shares.share import BlockState, Cohort, Probe, Share, Shared, blended, flatten, unflatten
from plures.models import Leaves

MEMBERSHIP = "membership"


class Grouping:
    """Which client uses which of the models. The membership of all clients is in ``kept.extra["membership"]``.

    Attributes:
        individual: whether the server must see individual uploads.
        probes: whether the server asks for gradients at the initial model.
        every: whether a client receives all models, to choose among them.
    """

    individual: ClassVar[bool] = False
    probes: ClassVar[bool] = False
    every: ClassVar[bool] = False

    @property
    def told(self) -> float | None:
        """Epsilon of a choice that a client tells by randomised response; ``None`` for the true one."""
        return None

    def start(self, clusters: int, setting: Setting) -> Tensor:
        """Membership before the first round, ``(population,)``."""
        return torch.zeros(len(setting), dtype=torch.int64)

    def remembers(self, clusters: int) -> Leaves:
        """Initial values of what it keeps besides the membership."""
        return {}

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        """Update the membership before a round."""
        return kept

    def settle(self, kept: BlockState, cohort: Cohort) -> BlockState:
        """Update the membership after a round; may also add rows to the models."""
        return kept

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> Tensor:
        """Membership of newcomers: the model with the lowest loss on their training data."""
        return lowest(kept, list(range(len(setting))), probe)


def cluster_count(kept: BlockState) -> int:
    """Number of clusters of a block, each with a model of its own."""
    return len(next(iter(kept.values.values())))


def lowest(kept: BlockState, clients: list[int], probe: Probe) -> Tensor:
    """For each of some clients, the model with the lowest training loss; ties go to the lowest number."""
    return probe.losses(clients, cluster_count(kept)).argmin(0).cpu()


def moved(kept: BlockState, clients: Tensor, membership: Tensor) -> BlockState:
    """The same models with a new membership of some clients."""
    fresh = kept.extra[MEMBERSHIP].index_copy(0, clients.cpu(), membership.cpu())
    return replace(kept, extra={**kept.extra, MEMBERSHIP: fresh})


@dataclass(frozen=True)
class LowestLoss(Grouping):
    """In each round, each client takes the model with the lowest loss on its training data.

    Ghosh et al. 2020, Algorithm 1. A client that took part before stays where it is unless another model's loss is
    lower by more than ``margin`` times the loss of its own (hysteresis, so that clients do not flap).

    Attributes:
        margin: relative improvement needed for a client to move; 0 is the paper's rule.
        epsilon: of each choice, which is then told by randomised response
            (:class:`~plures.method.response.Response`): a client trains the model that it told, and predicts with the
            best one, if it keeps nothing of its own. ``None`` tells the true one.
    """

    margin: float = 0.0
    epsilon: float | None = None
    every: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise PluresError(f"margin={self.margin}: give a relative improvement of at least 0 and below 1")
        if self.epsilon is not None:
            Response(self.epsilon, 2)

    @property
    def told(self) -> float | None:
        return self.epsilon

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        clients = cohort.clients.tolist()
        losses = probe.losses(clients, cluster_count(kept)).cpu()
        best, now = losses.argmin(0), kept.extra[MEMBERSHIP][clients]
        own = losses.gather(0, now.unsqueeze(0)).squeeze(0)
        stays = cohort.visited[clients].cpu() & (losses.min(0).values >= (1 - self.margin) * own)
        chosen = torch.where(stays & (self.margin > 0), now, best)
        if self.epsilon is not None and len(losses) > 1:
            chosen = response(chosen, Response(self.epsilon, len(losses)), cohort.coins("choice"))
        return moved(kept, cohort.clients, chosen)


@dataclass(frozen=True)
class By(Grouping):
    """Clients with the same value in a metadata column share a model; the membership is fixed.

    Attributes:
        column: the column; a newcomer with a value nobody had joins the model with the lowest training loss.
    """

    column: str

    def start(self, clusters: int, setting: Setting) -> Tensor:
        groups, _ = setting.groups(self.column)
        return groups

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> Tensor:
        groups, _ = setting.groups(self.column)
        return torch.where(groups >= 0, groups, super().join(kept, setting, probe)) if (groups < 0).any() else groups


@dataclass(frozen=True)
class Timed(Grouping):
    """Membership as a given function of time: dynamic groups (Han et al. 2022 for digital twins).

    Attributes:
        groups: ``(round, setting) -> (population,)`` int64.
    """

    groups: Callable[[int, Setting], Tensor]

    def start(self, clusters: int, setting: Setting) -> Tensor:
        return self.groups(0, setting)

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        groups = self.groups(cohort.round, cohort.setting)
        return moved(kept, torch.arange(len(groups)), groups)


@dataclass(frozen=True)
class Clustered(Share):
    """Several models; every client receives one of them and contributes to it.

    A cluster nobody contributed to keeps its value. A cluster of one client is local training of that client.

    Attributes:
        clusters: number of models at the start; with :class:`By`, the number of groups.
        grouping: which client uses which model.
        mixing: after a round, ``(models (rows, d), weights of the uploads to each (rows,), cohort) -> (rows, rows)``
            by which the rows are mixed, or ``None`` for no mixing in this round: edges under a cloud, gossip. Where the
            new rows are means, so are their running statistics.
        same_start: all models start from the run's initial values instead of different ones.
    """

    clusters: int = 2
    grouping: Grouping = field(default_factory=LowestLoss)
    mixing: Callable[[Tensor, Tensor, Cohort], Tensor | None] | None = None
    same_start: bool = False
    travels: ClassVar[bool] = True
    served: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise PluresError(f"clusters={self.clusters}: give at least 1")

    @property
    def individual(self) -> bool:  # type: ignore[override]
        return self.grouping.individual

    @property
    def probes(self) -> bool:  # type: ignore[override]
        return self.grouping.probes

    def start(self, initial: Leaves, fresh: Callable[[int], Leaves], setting: Setting) -> BlockState:
        membership = self.grouping.start(self.clusters, setting)
        count = max(self.clusters, int(membership.max()) + 1)
        starts = [initial, *(initial if self.same_start else fresh(number) for number in range(1, count))]
        values = {k: torch.stack([start[k] for start in starts]) for k in initial}
        return BlockState(values, {MEMBERSHIP: membership, **self.grouping.remembers(count)})

    def row(self, kept: BlockState, clients: Tensor) -> Tensor:
        return kept.extra[MEMBERSHIP][clients.cpu()]

    def read(self, kept: BlockState, rows: Tensor) -> Leaves:
        return {k: t[rows.to(t.device)] for k, t in kept.values.items()}

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        return self.grouping.choose(kept, cohort, probe)

    def write(self, kept: BlockState, rows: Tensor, values: Leaves, cohort: Cohort) -> BlockState:
        kept = super().write(kept, rows, values, cohort)
        if self.mixing is not None:
            received = torch.zeros(cluster_count(kept), dtype=torch.float64)
            received.index_add_(0, cohort.rows.cpu(), cohort.weights.cpu().to(torch.float64))
            flat = flatten(kept.marked())
            matrix = self.mixing(flat, received.to(flat.device), cohort)
            if matrix is not None:
                mixed = unflatten(matrix.to(flat) @ flat, kept.marked())
                kept = replace(kept, values=mixed | self._averaged(kept, matrix))
        return self.grouping.settle(kept, cohort)

    def _averaged(self, kept: BlockState, matrix: Tensor) -> Leaves:
        """Running statistics after mixing: averaged if the new rows are means of rows, otherwise unchanged."""
        mean = bool((matrix >= 0).all()) and torch.allclose(matrix.sum(1), torch.ones_like(matrix[0]))
        return {k: blended(kept.values[k], matrix) for k in kept.buffers} if mean else {}

    def downloads(self, setting: Setting) -> int:
        return self.clusters if self.grouping.every else 1

    @property
    def alone(self) -> bool:
        return self.grouping.every

    @property
    def epsilon(self) -> float | None:
        return self.grouping.told

    def chose(self, kept: BlockState, clients: Tensor, rows: Tensor) -> BlockState:
        return moved(kept, clients, rows)

    def local(self) -> Share:
        return self if self.alone else Shared()

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> BlockState:
        return replace(kept, extra={**kept.extra, MEMBERSHIP: self.grouping.join(kept, setting, probe)})
