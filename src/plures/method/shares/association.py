"""Association of clients with edges: trading link energy against similarity of the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.method.setting import Setting
from plures.method.shares.clusters import Grouping, moved
from plures.method.shares.share import BlockState, Cohort

EXHAUSTIVE = 100_000
"""Up to this many associations, all are tried."""


@brief
@by_content
@dataclass(frozen=True)
class Association:
    """Which client goes to which edge.

    Attributes:
        edges: ``(clients,)`` int64.
        cost: energy plus ``gamma`` times dispersion.
        bound: lower bound on the cost of any association; equal to ``cost`` if all were tried.
    """

    edges: Tensor
    cost: float
    bound: float


def associate(energy: Tensor, points: Tensor, gamma: float) -> Association:
    """Minimise ``sum_i E[i, z_i] + gamma sum_i ||x_i - mean of the points at edge z_i||^2`` over associations ``z``.

    Operational form of energy-aware edge association (Li et al. 2022). Up to 100,000 associations, all are tried.
    Beyond that, a local search moves single clients or swaps two clients while that helps, starting from each client's
    cheapest edge and from a clustering by similarity; the bound then adds the least energy to ``gamma`` times the least
    dispersion, which is at least the sum of the eigenvalues of the centred Gram matrix beyond the ``edges - 1`` largest
    (Ding, He 2004, Theorem 3.1).

    Args:
        energy: ``(clients, edges)``.
        points: ``(clients, d)``.
        gamma: energy per squared unit of the points.
    """
    if energy.dim() != 2 or len(energy) != len(points) or not bool(torch.isfinite(energy).all()):
        raise PluresError(f"energy {tuple(energy.shape)} of {len(points)} clients: give a finite number for each edge")
    if gamma < 0:
        raise PluresError(f"gamma={gamma}: it must not be negative")
    energy, points = energy.to("cpu", torch.float64), points.to("cpu", torch.float64)
    centred = points - points.mean(0)
    gram = centred @ centred.T
    count, edges = energy.shape
    if edges**count <= EXHAUSTIVE:
        every = torch.cartesian_prod(*[torch.arange(edges)] * count).view(-1, count)
        costs = torch.cat([_cost(energy, gram, gamma, some) for some in torch.split(every, 4096)])
        return Association(every[costs.argmin()], float(costs.min()), float(costs.min()))
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)
    bound = float(energy.min(1).values.sum() + gamma * spectrum[: max(count - edges + 1, 0)].sum())
    starts = energy.argmin(1), _alike(gram, edges)
    found = torch.stack([_descend(energy, gram, gamma, start) for start in starts])
    costs = _cost(energy, gram, gamma, found)
    return Association(found[costs.argmin()], float(costs.min()), bound)


def _cost(energy: Tensor, gram: Tensor, gamma: float, edges: Tensor) -> Tensor:
    """Cost of each association ``(n, clients)``, ``(n,)``."""
    at = torch.nn.functional.one_hot(edges, energy.shape[1]).to(energy)
    within = torch.einsum("nie,ij,nje->ne", at, gram, at) / at.sum(1).clamp(min=1)
    return (at * energy).sum((1, 2)) + gamma * (gram.trace() - within.sum(1))


def _alike(gram: Tensor, edges: int) -> Tensor:
    """Each client with the most similar of the clients that are farthest from each other."""
    far = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    chosen = [int(gram.diagonal().argmax())]
    while len(chosen) < min(edges, len(gram)):
        chosen.append(int(far[:, chosen].min(1).values.argmax()))
    return far[:, chosen].argmin(1)


def _descend(energy: Tensor, gram: Tensor, gamma: float, edges: Tensor) -> Tensor:
    """Repeat the best move of one client, or swap of two, until none helps."""
    count = energy.shape[1]
    edges = edges.clone()
    everyone = torch.arange(len(edges))
    while True:
        at = torch.nn.functional.one_hot(edges, count).to(energy)
        size, towards = at.sum(0), gram @ at
        spread = (at * towards).sum(0) / size.clamp(min=1).square()
        distance = gram.diagonal()[:, None] - 2 * towards / size.clamp(min=1) + spread
        joining = energy + gamma * distance * size / (size + 1)
        leaving = energy + gamma * distance * size / (size - 1).clamp(min=1)
        gain = leaving[everyone, edges][:, None] - joining
        gain[everyone, edges] = 0
        bill = at.T @ energy
        swap = bill.diagonal()[:, None] + bill.diagonal() - bill - bill.T
        move, exchange = float(gain.max()), float(swap.max())
        least = 1e-12 * (1 + float(energy.abs().max()))
        if max(move, exchange) <= least:
            return edges
        if move >= exchange:
            client, edge = divmod(int(gain.argmax()), count)
            edges[client] = edge
        else:
            one, two = divmod(int(swap.argmax()), count)
            edges = torch.where(edges == one, two, torch.where(edges == two, one, edges))


@brief
@by_content
@dataclass(frozen=True)
class EnergyAware(Grouping):
    """Clients are assigned to edges with cheap links and similar models (:func:`associate`).

    Clients start at their cheapest edge. A client's point is the last model it sent; clients that never sent one stay
    where they are and do not count. The server sees individual uploads and keeps one per client. Newcomers, whose link
    energies are unknown, join the model with the lowest training loss.

    Attributes:
        energy: name of one metadata column with each client's home edge (a link home costs 0, any other 1), names of
            columns with the energy of the link to each edge, or the numbers themselves ``(clients, edges)``.
        gamma: energy per squared unit of the models.
        rounds: rounds between associations.
    """

    energy: str | Sequence[str] | Tensor
    gamma: float = 1.0
    rounds: int = 1
    individual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.gamma < 0:
            raise PluresError(f"association every {self.rounds} rounds with gamma={self.gamma}: give at least 1 and 0")

    def links(self, setting: Setting) -> Tensor:
        """Energy of every link, ``(clients, edges)``."""
        if isinstance(self.energy, str):
            groups, names = setting.groups(self.energy)
            return 1 - torch.nn.functional.one_hot(groups, len(names)).to(torch.float64)
        if isinstance(self.energy, Tensor):
            return self.energy
        return torch.stack([setting.column(column) for column in self.energy], 1)

    def start(self, clusters: int, setting: Setting) -> Tensor:
        energy = self.links(setting)
        if energy.dim() != 2 or len(energy) != len(setting):
            raise PluresError(f"energy {tuple(energy.shape)} of {len(setting)} clients: give a number for each edge")
        return energy.argmin(1).cpu()

    def settle(self, kept: BlockState, cohort: Cohort) -> BlockState:
        uploads = cohort.uploads
        before = kept.extra.get("sent", uploads.new_zeros(len(cohort.setting), uploads.shape[1]))
        sent = before.to(uploads.device).index_copy(0, cohort.clients.to(uploads.device), uploads)
        kept = replace(kept, extra={**kept.extra, "sent": sent})
        if (cohort.round + 1) % self.rounds:
            return kept
        seen = cohort.visited.index_fill(0, cohort.clients, True).nonzero().squeeze(1)
        found = associate(self.links(cohort.setting).cpu()[seen], sent.cpu()[seen], self.gamma)
        return moved(kept, seen, found.edges)
