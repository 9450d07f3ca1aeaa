"""Groups that the server finds from the directions of clients' uploads: recursive splits, and k-means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method.setting import Setting
from plures.method.shares.clusters import MEMBERSHIP, Grouping, cluster_count, moved
from plures.method.shares.share import BlockState, Cohort, Probe
from plures.models import Leaves

CENTROIDS = "centroids"


@dataclass(frozen=True)
class Splitting(Grouping):
    """All clients start in one cluster; clusters are split in two recursively when their members pull apart.

    Sattler, Müller, Samek 2020. A cluster ``C`` is split after a round in which all its members took part,
    if ``||sum_{i in C} p_i change_i|| < eps1`` (their common model is near a stationary point) and
    ``max_{i in C} ||change_i|| > eps2`` (but some member's own is not). The part with the first member keeps the
    cluster's number; the other continues with a copy of the model. Members are identified by client, wherever they are
    in a cohort. A newcomer joins the model with the lowest loss on its training data.

    Attributes:
        eps1: bound on the norm of the weighted mean change, in the model's units.
        eps2: bound on the largest norm of a change; infinity never splits.
        warmup: rounds before the first check for a split.
        gamma: a split is made if ``sqrt((1 - largest cosine across) / 2) > gamma``; 0 asks for no separation.
        minimum: smallest part that may be split off; with 1, a client may end up alone, which is local training.
    """

    eps1: float = 0.4
    eps2: float = 1.6
    warmup: int = 20
    gamma: float = 0.0
    minimum: int = 1
    individual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.eps1 >= 0 and self.eps2 >= 0 and self.warmup >= 0 and 0 <= self.gamma <= 1 and self.minimum >= 1):
            raise PluresError(
                f"splitting: eps1={self.eps1}, eps2={self.eps2}, warmup={self.warmup}, gamma={self.gamma}, "
                f"minimum={self.minimum}: norms and rounds are at least 0, gamma lies in [0, 1], minimum is at least 1"
            )

    def settle(self, kept: BlockState, cohort: Cohort) -> BlockState:
        if cohort.round < self.warmup or cohort.changes is None:
            return kept
        membership, parents = kept.extra[MEMBERSHIP].clone(), list[int]()
        place = {client: number for number, client in enumerate(cohort.clients.tolist())}
        for cluster in range(cluster_count(kept)):
            members = (membership == cluster).nonzero().squeeze(1)
            at = [place[client] for client in members.tolist() if client in place]
            if len(at) < max(len(members), 2, 2 * self.minimum):
                continue
            away = self.divided(cohort.changes[at], cohort.weights[at])
            if away is not None:
                membership[members[away.cpu()]] = cluster_count(kept) + len(parents)
                parents.append(cluster)
        return moved(kept.grown(parents), torch.arange(len(membership)), membership) if parents else kept

    def divided(self, changes: Tensor, weights: Tensor) -> Tensor | None:
        """Which members of a cluster are split off, ``(members,)``; ``None`` for no split.

        Args:
            changes: ``(members, d)``.
            weights: ``(members,)``.
        """
        mean = (weights / weights.sum()).to(changes) @ changes
        if not (mean.norm() < self.eps1 and changes.norm(dim=1).max() > self.eps2):
            return None
        away, across = bipartition(changes)
        smaller = min(int(away.sum()), int((~away).sum()))
        separated = max(0.0, (1 - across) / 2) ** 0.5 > self.gamma
        return away if separated and smaller >= self.minimum else None


@dataclass(frozen=True)
class InitialGradients(Grouping):
    """Clients are grouped once, before the first round, by the directions of their gradients at the initial model.

    k-means on unit vectors, so that the scale of a client's loss does not matter. Every client of the population sends
    one gradient, of leaves that are sent anyway. A newcomer joins the nearest centroid by its own gradient at
    the initial model.

    Attributes:
        restarts: runs of k-means from different seeds; the best is taken.
    """

    restarts: int = 10
    individual: ClassVar[bool] = True
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise PluresError(f"restarts={self.restarts}: give at least 1")

    def remembers(self, clusters: int) -> Leaves:
        return {CENTROIDS: torch.zeros(clusters, 0, dtype=torch.float64)}

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        if cohort.round > 0:
            return kept
        everybody, clusters = torch.arange(len(cohort.setting)), cluster_count(kept)
        points = directions(probe.gradients(everybody.tolist())).cpu()
        drawn = cohort.draw("initial gradients", self.restarts * clusters).view(self.restarts, clusters)
        found = [spherical_means(points, row) for row in drawn]
        membership, centroids = max(found, key=lambda f: float((points * f[1][f[0]]).sum()))
        return replace(kept, extra={**kept.extra, MEMBERSHIP: membership, CENTROIDS: centroids})

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> Tensor:
        centroids = kept.extra[CENTROIDS].cpu()
        if not centroids.numel():
            return self.start(len(centroids), setting)
        return (directions(probe.gradients(list(range(len(setting))))).cpu() @ centroids.T).argmax(1)


def directions(vectors: Tensor) -> Tensor:
    """Rows ``(n, d)`` scaled to length 1; a row of zeros stays zero."""
    return torch.nn.functional.normalize(vectors, dim=1, eps=1e-300)


def bipartition(vectors: Tensor) -> tuple[Tensor, float]:
    """The partition into two parts with the smallest maximum cosine across them (Sattler et al. 2020, Algorithm 1).

    Pairs are joined in order of decreasing cosine until two parts are left.

    Args:
        vectors: ``(n, d)``, at least two.

    Returns:
        ``(n,)`` which vectors are not in the first vector's part, and the largest cosine across.
    """
    units = directions(vectors)
    cosines = (units @ units.T).cpu()
    pairs = torch.triu_indices(len(vectors), len(vectors), 1)
    order = cosines[pairs[0], pairs[1]].argsort(descending=True, stable=True)
    part = list(range(len(vectors)))
    for i, j in pairs[:, order].T.tolist():
        if part[i] != part[j]:
            if len(set(part)) == 2:
                return torch.tensor([p != part[0] for p in part]), float(cosines[i, j])
            part = [part[i] if p == part[j] else p for p in part]
    raise PluresError("one vector cannot be divided into two parts")


def spherical_means(points: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """k-means on the unit sphere (Dhillon, Modha 2001), seeded as k-means++ (Arthur, Vassilvitskii 2007).

    Args:
        points: ``(n, d)`` of length 1.
        draws: ``(k,)`` uniform numbers in [0, 1) that choose the seeds.

    Returns:
        The cluster of every point ``(n,)``, numbered in the order of their first points, and unit centroids ``(k, d)``.
    """
    seeds, far = list[Tensor](), torch.full((len(points),), 2.0, dtype=points.dtype)
    for draw in draws.to(points.dtype):
        mass = far.cumsum(0)
        seeds.append(points[int(torch.searchsorted(mass, draw * mass[-1], right=True).clamp(max=len(points) - 1))])
        far = torch.minimum(far, 1 - points @ seeds[-1]).clamp(min=0)
    centroids = torch.stack(seeds)
    member = (points @ centroids.T).argmax(1)
    for _ in range(100):
        sums = torch.zeros_like(centroids).index_add_(0, member, points)
        occupied = torch.bincount(member, minlength=len(centroids)) > 0
        centroids = torch.where(occupied.unsqueeze(1), directions(sums), centroids)
        fresh = (points @ centroids.T).argmax(1)
        if torch.equal(fresh, member):
            break
        member = fresh
    first = torch.full((len(centroids),), len(points)).scatter_reduce(0, member, torch.arange(len(points)), "amin")
    order = first.argsort(stable=True)
    return order.argsort()[member], centroids[order]
