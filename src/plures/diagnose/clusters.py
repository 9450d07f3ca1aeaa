"""Groups: do the clients' initial gradients fall into clusters, and does the metadata explain them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plures.diagnose.chance import PERMUTATIONS, Floats, Ints
from plures.diagnose.gradients import gradients
from plures.diagnose.result import LEVEL, Clusters, Match
from plures.diagnose.sample import Sample
from plures.federation.metadata import MISSING_VALUES
from plures.federation.seeding import generator
from plures.method.shares.splitting import directions, spherical_means
from plures.models import ModelFactory

LEAST_CLIENTS = 6
MOST_CLUSTERS = 6
DRAWS = 99
RESTARTS = 2
DIMENSIONS = 5
STRUCTURE = 0.25
"""Silhouette below which there is no substantial structure (Kaufman, Rousseeuw 1990)."""
OUTLYING = 3.5
"""Modified z-score from which a client may be an outlier (Iglewicz, Hoaglin 1993)."""
FURTHER = 1.5
"""Multiple of the median distance that it must also exceed, so that small differences do not count."""


def clusters(sample: Sample, model: nn.Module | ModelFactory | None = None, seed: int = 0) -> Clusters:
    """Spherical k-means of the clients' gradients at the initial model, for 2 to 6 clusters.

    The largest mean silhouette is compared with that of as many points from one Gaussian with the same mean and
    covariance, clustered in the same way (Liu, Hayes, Nobel, Marron 2008): clients that differ without forming groups
    give similar values. Both use the mean direction and the five leading principal coordinates.

    First, gradients are compared within labels, so that groups are groups of inputs or of targets given inputs. If
    there are none, or more than 20 labels, whole gradients are compared, which includes label skew.
    """
    found = gradients(sample, model, seed)
    rng = generator(seed, "clusters")
    units = directions(torch.from_numpy(found.whole)).numpy()
    beyond, groups = found.matched is not None, None
    if found.matched is not None:
        groups = grouped(directions(torch.from_numpy(found.matched)).numpy(), rng)
    if groups is None or not groups.there:
        beyond, groups = False, grouped(units, rng)
    return Clusters(
        model=found.model,
        count=int(groups.members.max()) + 1,
        silhouette=groups.silhouette,
        chance=groups.chance,
        p=groups.p,
        beyond_labels=beyond,
        sizes=np.bincount(groups.members).tolist(),
        members=groups.members.tolist(),
        matches=matches(sample, units, groups.members if groups.p is not None else None, rng),
        outliers=[sample.federation.clients[i] for i in outliers(units)],
    )


@dataclass(frozen=True)
class Grouped:
    """A clustering and its chance level; ``p`` is None if there are too few clients."""

    members: Ints
    silhouette: float
    chance: float
    p: float | None

    @property
    def there(self) -> bool:
        """Whether it is significant and substantial, without a cluster of one."""
        enough = self.silhouette >= STRUCTURE and int(np.bincount(self.members).min()) > 1
        return self.p is not None and self.p <= LEVEL and enough


def grouped(units: Floats, rng: np.random.Generator) -> Grouped:
    """The best clustering of unit vectors, against points from one Gaussian."""
    mean, coordinates, spread = leading(units)
    if len(units) < LEAST_CLIENTS or spread.sum() <= 1e-12:
        return Grouped(np.zeros(len(units), dtype=np.int64), 0.0, 0.0, None)
    members, found = cluster(mean, coordinates, rng)
    drawn = [cluster(mean, rng.standard_normal(coordinates.shape) * spread, rng)[1] for _ in range(DRAWS)]
    return Grouped(members, found, float(np.mean(drawn)), (1 + sum(d >= found for d in drawn)) / (1 + DRAWS))


def leading(units: Floats) -> tuple[float, Floats, Floats]:
    """Length of the mean, principal coordinates ``(n, d)`` about it, and their standard deviations ``(d,)``."""
    centre = units.mean(0)
    centred = units - centre
    left, size, _ = np.linalg.svd(centred @ centred.T)
    coordinates = (left * np.sqrt(np.maximum(size, 0)))[:, : min(DIMENSIONS, len(units) - 1)]
    return float(np.linalg.norm(centre)), coordinates, coordinates.std(0)


def cluster(mean: float, coordinates: Floats, rng: np.random.Generator) -> tuple[Ints, float]:
    """The clustering with the largest mean silhouette."""
    points = directions(torch.from_numpy(np.hstack([np.full((len(coordinates), 1), mean), coordinates])))
    distance = (2 - 2 * points @ points.T).clamp(min=0).sqrt().numpy()
    best = np.zeros(len(points), dtype=np.int64), -1.0
    for count in range(2, min(MOST_CLUSTERS, len(points) // 2) + 1):
        tried = [spherical_means(points, torch.from_numpy(rng.random(count))) for _ in range(RESTARTS)]
        members, _ = max(tried, key=lambda found: float((points * found[1][found[0]]).sum()))
        value = silhouette(distance, members.numpy())
        if value > best[1]:
            best = members.numpy(), value
    return best


def silhouette(distance: Floats, members: Ints) -> float:
    """Mean of ``(b - a) / max(a, b)`` (Rousseeuw 1987); 0 for a cluster of one, and for a single cluster.

    Args:
        distance: ``(n, n)``.
        members: ``(n,)`` clusters.
    """
    _, code = np.unique(members, return_inverse=True)
    at = np.eye(int(code.max()) + 1)[code]
    size = at.sum(0)
    if len(size) < 2:
        return 0.0
    total = distance @ at
    own = size[code]
    inside = total[np.arange(len(code)), code] / np.maximum(own - 1, 1)
    across = np.where(at > 0, np.inf, total / size).min(1)
    wide = np.maximum(inside, across)
    value = np.where((own > 1) & (wide > 0), (across - inside) / np.where(wide > 0, wide, 1), 0)
    return float(value.mean())


def outliers(units: Floats) -> list[int]:
    """Clients far from the coordinate-wise median: modified z-score above 3.5, and 1.5 times the median distance."""
    far = np.linalg.norm(units - np.median(units, 0), axis=1)
    spread = np.median(np.abs(far - np.median(far)))
    if len(units) < LEAST_CLIENTS or spread <= 1e-9:
        return []
    apart = (0.6745 * (far - np.median(far)) / spread > OUTLYING) & (far > FURTHER * np.median(far))
    return [int(i) for i in np.flatnonzero(apart)]


def matches(sample: Sample, units: Floats, members: Ints | None, rng: np.random.Generator) -> list[Match]:
    """How much of the gradients' differences each metadata column explains."""
    centred = units - units.mean(0)
    gram, found = centred @ centred.T, []
    metadata = {k: v for k, v in sample.federation.metadata.items() if k != MISSING_VALUES}
    read = {column: design(values) for column, values in metadata.items()}
    usable = {column: made for column, made in read.items() if made is not None}
    for column, (matrix, groups) in usable.items():
        share, p = explained(gram, matrix, rng)
        codes = np.unique([str(v) for v in metadata[column]], return_inverse=True)[1]
        rand = None if members is None or not groups else adjusted_rand(codes, members)
        found.append(Match(column=column, groups=groups, explained=share, p=min(1.0, p * len(usable)), rand=rand))
    return sorted(found, key=lambda match: (match.p, -match.explained))


def design(values: tuple[object, ...]) -> tuple[Floats, int] | None:
    """Design columns of a metadata column, and its number of groups; None if it does not separate clients.

    Values that repeat (at most half as many as clients) are groups; other numbers are read as numbers and squares.
    """
    names, codes = np.unique([str(v) for v in values], return_inverse=True)
    if len(names) < 2:
        return None
    if 2 * len(names) <= len(values):
        return np.eye(len(names))[codes], len(names)
    if all(isinstance(v, int | float) and np.isfinite(v) for v in values) and len(values) > 3:
        numbers = np.array([float(str(v)) for v in values])
        scaled = (numbers - numbers.mean()) / numbers.std()
        return np.stack([np.ones_like(scaled), scaled, scaled**2], 1), 0
    return None


def explained(gram: Floats, matrix: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Share of the dispersion that a linear model explains, beyond the mean over permutations, and its p-value.

    McArdle, Anderson 2001: ``tr(H G) / tr(G)`` with the projection H on the columns.

    Args:
        gram: ``(n, n)`` centred inner products.
        matrix: ``(n, k)``.
        rng: source of the permutations.
    """
    basis = np.linalg.svd(matrix, full_matrices=False)
    basis_kept = basis[0][:, basis[1] > 1e-9 * basis[1][0]]
    total = float(np.trace(gram))
    if total <= 1e-12:
        return 0.0, 1.0

    def share(order: NDArray[np.int64]) -> float:
        moved = basis_kept[order]
        return float(((gram @ moved) * moved).sum() / total)

    observed = share(np.arange(len(gram)))
    drawn = [share(rng.permutation(len(gram))) for _ in range(PERMUTATIONS)]
    chance = float(np.mean(drawn))
    p = (1 + sum(d >= observed - 1e-12 for d in drawn)) / (1 + PERMUTATIONS)
    return float(np.clip((observed - chance) / max(1 - chance, 1e-12), 0, 1)), p


def adjusted_rand(one: Ints, other: Ints) -> float:
    """Adjusted Rand index of two partitions (Hubert, Arabie 1985): 1 identical, 0 at chance level."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1)

    def pairs(count: Floats) -> float:
        return float((count * (count - 1) / 2).sum())

    both, left, right = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    every = len(one) * (len(one) - 1) / 2
    expected = left * right / every
    most = (left + right) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)
