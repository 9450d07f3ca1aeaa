"""How the clients' predictors differ: distances from the mean, nearest neighbours, and a two-dimensional map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plures.evaluate.record import Layer, Personal
from plures.method import Leaf
from plures.method.leaf import by_leaf, short_names
from plures.run import Run

HELD = 2**26
"""Most numbers of all clients' predictors that are held in memory at once. Beyond it, the map uses a random sketch."""
SKETCH = 1024
PEERS = 5
DIGITS = 6
SEED = 0


def personal(run: Run, clients: Sequence[int] | None = None) -> Personal | None:
    """Compare the predictors of a run's clients; ``None`` if all are the same.

    Distances from the mean are exact. If all predictors together are too large for memory, map and peers come from a
    random sketch that preserves distances to a few percent (Charikar, Chen, Farach-Colton 2002).

    Args:
        run: the run.
        clients: positions of the clients to compare; default: all.
    """
    asked = list(range(len(run.federation)) if clients is None else clients)
    order = [client for chunk, _ in _predictors(run, asked) for client in chunk]
    total, low, high = _ranges(run, asked)
    different = [leaf for leaf in total if bool((low[leaf] != high[leaf]).any())]
    if not different or len(order) < 2:
        return None
    mean = {leaf: total[leaf] / len(order) for leaf in different}
    layers: dict[Leaf, list[Leaf]] = {}
    for leaf in different:
        layers.setdefault(_layer(leaf), []).append(leaf)
    width = sum(len(mean[leaf]) for leaf in different)
    sketch = _sketch({leaf: len(mean[leaf]) for leaf in different}) if width * len(order) > HELD else None
    compared: dict[Leaf, list[Tensor]] = {layer: [] for layer in layers}
    rows: list[Tensor] = []
    for _, leaves in _predictors(run, asked):
        for layer, members in layers.items():
            own = torch.cat([leaves[leaf] for leaf in members], 1)
            compared[layer].append(_compared(own, torch.cat([mean[leaf] for leaf in members])))
        rows.append(_row(leaves, mean, sketch))
    place = torch.tensor(order).argsort()
    vectors = torch.cat(rows)[place]
    places, explained = components(vectors)
    found, names = [], short_names([_layer(leaf) for leaf in total])
    for layer, members in layers.items():
        norm, distance, cosine = (_short(column) for column in torch.cat(compared[layer])[place].unbind(1))
        size = sum(len(mean[leaf]) for leaf in members)
        found.append(Layer(name=names[layer], size=size, norm=norm, distance=distance, cosine=cosine))
    return Personal(
        layers=found,
        same=sum(len(total[leaf]) for leaf in total if leaf not in mean),
        places=[(x, y) for x, y in zip(*map(_short, places.unbind(1)), strict=True)],
        explained=(float(explained[0]), float(explained[1])),
        peers=nearest(vectors),
    )


def components(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Two principal components of centred vectors ``(clients, numbers)``.

    The client farthest along a component has a positive coordinate, so that the map is not mirrored at random.

    Returns:
        Coordinates ``(clients, 2)``, and the share of the variance along each component ``(2,)``.
    """
    count, width = vectors.shape
    vectors = vectors.nan_to_num(0.0, 0.0, 0.0)
    scale = vectors.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    if count <= width:
        values, along = torch.linalg.eigh(vectors @ vectors.T)
        places = along * values.clamp(min=0).sqrt()
    else:
        values, axes = torch.linalg.eigh(vectors.T @ vectors)
        places = vectors @ axes
    values, places = values.flip(0)[:2].clamp(min=0), places.flip(1)[:, :2]
    if len(values) < 2:
        values, places = torch.cat([values, values.new_zeros(1)]), torch.cat([places, torch.zeros_like(places)], 1)
    farthest = places.gather(0, places.abs().argmax(0, keepdim=True))
    return places * torch.where(farthest < 0, -1.0, 1.0), values / scale


def nearest(vectors: Tensor) -> list[list[int]]:
    """Per client, the positions of the nearest other clients."""
    far = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").nan_to_num(torch.inf)
    far.fill_diagonal_(torch.inf)
    order: list[list[int]] = far.argsort(dim=1, stable=True)[:, : min(PEERS, len(vectors) - 1)].tolist()
    return [[j for j in row if j != i] for i, row in enumerate(order)]


def _predictors(run: Run, clients: list[int]) -> Iterator[tuple[list[int], dict[Leaf, Tensor]]]:
    """Chunks of clients and the leaves of their predictors, ``(clients, numbers)`` each."""
    run.serve(clients)
    for chunk in run.chunks(clients):
        leaves = by_leaf(run.deployed(chunk))
        yield chunk, {leaf: t.reshape(len(t), -1).double().cpu() for leaf, t in leaves.items() if t.is_floating_point()}


def _layer(leaf: Leaf) -> Leaf:
    """The module that a leaf belongs to, or the leaf itself if it belongs to none."""
    return Leaf(leaf.slot, leaf.path.rpartition(".")[0] or leaf.path)


def _ranges(run: Run, clients: list[int]) -> tuple[dict[Leaf, Tensor], dict[Leaf, Tensor], dict[Leaf, Tensor]]:
    """Sum, least and greatest value over clients, by leaf."""
    total: dict[Leaf, Tensor] = {}
    low: dict[Leaf, Tensor] = {}
    high: dict[Leaf, Tensor] = {}
    for _, leaves in _predictors(run, clients):
        for leaf, t in leaves.items():
            total[leaf] = total[leaf] + t.sum(0) if leaf in total else t.sum(0)
            low[leaf] = torch.minimum(low.get(leaf, t[0]), t.amin(0))
            high[leaf] = torch.maximum(high.get(leaf, t[0]), t.amax(0))
    return total, low, high


def _compared(own: Tensor, mean: Tensor) -> Tensor:
    """``(clients, 3)``: length, distance from the mean, cosine to it."""
    norm, distance = own.norm(dim=1), (own - mean).norm(dim=1)
    return torch.stack([norm, distance, torch.cosine_similarity(own, mean.unsqueeze(0))], 1)


def _sketch(sizes: dict[Leaf, int]) -> dict[Leaf, tuple[Tensor, Tensor]]:
    """A bucket and a sign for every number."""
    random = torch.Generator().manual_seed(SEED)
    return {
        leaf: (torch.randint(SKETCH, (n,), generator=random), 2.0 * torch.randint(2, (n,), generator=random) - 1)
        for leaf, n in sizes.items()
    }


def _row(
    leaves: dict[Leaf, Tensor], mean: dict[Leaf, Tensor], sketch: dict[Leaf, tuple[Tensor, Tensor]] | None
) -> Tensor:
    """Differences from the mean, ``(clients, numbers)``, or their sketch."""
    if sketch is None:
        return torch.cat([leaves[leaf] - mean[leaf] for leaf in mean], 1)
    found = torch.zeros(len(next(iter(leaves.values()))), SKETCH, dtype=torch.float64)
    for leaf, (bucket, sign) in sketch.items():
        found.index_add_(1, bucket, (leaves[leaf] - mean[leaf]) * sign.double())
    return found


def _short(values: Tensor) -> list[float]:
    """Numbers rounded to :data:`DIGITS` significant digits."""
    return [float(f"{x:.{DIGITS}g}") for x in values.tolist()]
