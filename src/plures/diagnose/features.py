"""Feature shift: do clients' inputs differ by more than their labels explain?"""

from __future__ import annotations

import numpy as np

from plures.diagnose.chance import Floats, Ints, between
from plures.diagnose.result import ColumnShift, FeatureShift
from plures.diagnose.sample import Sample, components, flat
from plures.federation.seeding import generator

FREQUENCIES = 64
SHOWN = 5


def feature_shift(sample: Sample, seed: int = 0) -> FeatureShift:
    """Distances of the clients' input distributions from what their labels explain.

    A client's mean embedding in the Gaussian kernel's space is compared with the pooled embeddings of the labels, mixed
    by the client's own label frequencies; rows are rearranged among clients within labels. So label skew alone changes
    nothing, and neither do clients that label the same inputs differently.
    """
    rng = generator(seed, "feature shift")
    found = between(features(sample.points, seed), sample.owner, sample.clients, rng, sample.strata)
    weights = np.bincount(sample.owner, minlength=sample.clients) / len(sample.owner)
    by_column = [
        (name, between(sample.raw[0][:, place], sample.owner, sample.clients, rng, sample.strata, 20).share)
        for place, name in column_names(sample)
    ]
    aligned = None
    if any(sample.real):
        own = [
            alike(raw, sample.owner, sample.clients) if real else raw
            for raw, real in zip(sample.raw, sample.real, strict=True)
        ]
        points = components(flat(own), seed)
        aligned = between(features(points, seed), sample.owner, sample.clients, rng, sample.strata, 20).share
    return FeatureShift(
        share=found.share,
        chance=found.chance,
        p=found.p,
        mmd=float(np.sqrt(max(0.0, float((weights * found.clients).sum())))),
        aligned=aligned,
        removed=None if aligned is None or found.share <= 0 else float(np.clip(1 - aligned / found.share, 0, 1)),
        columns=[ColumnShift(name=n, share=s) for n, s in sorted(by_column, key=lambda c: -c[1])[:SHOWN]],
        clients=[float(np.sqrt(max(0.0, x))) for x in found.clients],
    )


def column_names(sample: Sample) -> list[tuple[int, str]]:
    """Named entries of the first feature dimension."""
    return list(enumerate(sample.federation.columns)) if sample.real[0] else []


def median_distance(points: Floats, most: int = 500) -> float:
    """Median Euclidean distance between the first few points (median heuristic, Gretton et al. 2012)."""
    some = points[:: max(1, len(points) // most)][:most]
    square = np.maximum((some**2).sum(1)[:, None] + (some**2).sum(1) - 2 * some @ some.T, 0)
    apart = np.sqrt(square[np.triu_indices(len(some), 1)])
    apart = apart[apart > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def features(points: Floats, seed: int, frequencies: int = FREQUENCIES) -> Floats:
    """Random Fourier features ``(n, 2 frequencies)`` whose inner products approximate the Gaussian kernel.

    Rahimi, Recht 2007; the kernel is ``exp(-|x - y|^2 / (2 s^2))`` with the median distance s.
    """
    drawn = generator(seed, "frequencies").standard_normal((points.shape[1], frequencies))
    angles = points @ drawn / median_distance(points)
    return np.asarray(np.hstack([np.cos(angles), np.sin(angles)]) / np.sqrt(frequencies), dtype=np.float64)


def mmd(one: Floats, other: Floats, bandwidth: float) -> float:
    """Squared maximum mean discrepancy of two sets of points in the Gaussian kernel, the biased estimate.

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` over all pairs (Gretton et al. 2012, equation 5).
    """

    def kernel(a: Floats, b: Floats) -> float:
        square = ((a[:, None] - b[None]) ** 2).sum(2)
        return float(np.exp(-square / (2 * bandwidth**2)).mean())

    return kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)


def alike(raw: Floats, owner: Ints, clients: int) -> Floats:
    """Inputs scaled to mean 0 and standard deviation 1 for each client and column, as feature normalisation would."""
    scaled = raw.copy()
    for client in range(clients):
        own = raw[owner == client]
        scale = own.std((0, 2), keepdims=True)
        scaled[owner == client] = (own - own.mean((0, 2), keepdims=True)) / np.where(scale > 1e-6, scale, 1)
    return scaled
