"""Membership inference with shadow models: the likelihood ratio attack (LiRA, Carlini et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from plures.audit.membership import Floats, Membership, guessing
from plures.errors import PluresError
from plures.evaluate import predictions
from plures.federation import Federation, Split
from plures.run import Run

TINY = 1e-12
Make = Callable[[Federation], Run]
"""``make(federation)``: a finished run on these data."""


def likelihood_ratio(observed: Floats, scores: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Log of the ratio of two normal densities of each example's score: in training data, and not.

    Both have means of their own for each example; their variances are those of all examples together, because a few
    shadow models say little about the variance of one (Carlini et al. 2022, Section VI-C).

    Args:
        observed: the attacked model's scores, ``(n,)``.
        scores: those of the shadow models, ``(shadows, n)``.
        inside: whether an example was in a shadow model's training data, ``(shadows, n)``.

    Returns:
        ``(n,)``; NaN for examples that all shadow models had, or none.
    """
    means, variances = [], []
    for who in (inside, ~inside):
        count = who.sum(0)
        with np.errstate(invalid="ignore"):
            mean = np.where(who, scores, 0.0).sum(0) / np.where(count, count, np.nan)
        left = np.where(who, scores - mean, np.nan)
        freedom = np.maximum(count - 1, 0).sum()
        variances.append(np.nansum(left**2) / freedom if freedom else np.nan)
        means.append(mean)
    inner, outer = (
        -((observed - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance)
        for mean, variance in zip(means, np.maximum(variances, TINY), strict=True)
    )
    return np.asarray(inner - outer)


def confidence(run: Run, client: str) -> Floats:
    """Scores of a client's test examples, ``(n,)``: log odds of the true class; without classes, the negative loss."""
    found = predictions(run, client, "test")
    loss = found.losses.double().cpu()
    if found.probabilities is None or found.targets.dim() > 1:
        return np.asarray(-loss.numpy())
    own = found.probabilities.double().cpu().gather(1, found.targets.cpu().long().unsqueeze(1)).squeeze(1)
    own = own.clamp(1e-12, 1 - 1e-12)
    return np.asarray((own.log() - (-own).log1p()).numpy())


def shadowed(
    federation: Federation, make: Make, shadows: int = 4, seed: int = 0, clients: Sequence[str] = ()
) -> dict[str, Membership]:
    """How well shadow models tell the training examples of each client, from the client's own model.

    Each of ``shadows + 1`` runs trains on a random half of every client's training examples. Each is attacked in turn
    with all others as shadow models; the scores of all are judged together. So the attack is on the method and its
    settings, with half the examples, not on one finished run.

    Args:
        federation: the data.
        make: trains on such data, and returns the finished run.
        shadows: number of shadow models: at least 2. Published attacks use 16 to 256; a few are a lower bound.
        seed: of the halves.
        clients: who is attacked; default: all. All train.

    Returns:
        By client, :class:`Membership` of its training examples.
    """
    if shadows < 2:
        raise PluresError(f"shadows={shadows}: give at least 2")
    random = torch.Generator().manual_seed(seed)
    train = list(federation.splits["train"])
    halves = [[torch.rand(len(rows), generator=random) < 0.5 for rows in train] for _ in range(shadows + 1)]
    names = tuple(clients) or federation.clients
    scores = [observed(federation, make, train, half, names) for half in halves]
    found = {}
    for name in names:
        client = federation.index(name)
        values = np.stack([one[name] for one in scores])
        inside = np.stack([half[client].numpy() for half in halves])
        members, others = [], []
        for target in range(shadows + 1):
            rest = [number for number in range(shadows + 1) if number != target]
            ratios = likelihood_ratio(values[target], values[rest], inside[rest])
            known = ~np.isnan(ratios)
            members.append(ratios[known & inside[target]])
            others.append(ratios[known & ~inside[target]])
        found[name] = guessing(np.concatenate(members), np.concatenate(others))
    return found


def observed(
    federation: Federation,
    make: Make,
    train: Sequence[torch.Tensor],
    half: Sequence[torch.Tensor],
    clients: Sequence[str],
) -> dict[str, Floats]:
    """Scores of all training examples of some clients, under their models of a run that trained on a part of them."""
    kept = [rows[keep] if bool(keep.any()) else rows[:1] for rows, keep in zip(train, half, strict=True)]
    splits = {**federation.splits, "train": Split.of(kept), "test": Split.of(list(train))}
    run = make(replace(federation, splits=splits))
    return {client: confidence(run, client) for client in clients}
