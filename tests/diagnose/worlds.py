"""Made-up federations in which the clients differ in exactly one way, or in none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from plures.errors import PluresWarning
from plures.federation import Federation, from_arrays
from plures.federation.seeding import generator

CLIENTS, ROWS, COLUMNS = 12, 100, 6


def world(
    seed: int = 0,
    *,
    clients: int = CLIENTS,
    sizes: Callable[[int], int] = lambda client: ROWS,
    prior: Callable[[int, np.random.Generator], float] = lambda client, rng: 0.5,
    move: Callable[[int, np.random.Generator], np.ndarray] = lambda client, rng: np.zeros(COLUMNS),
    direction: Callable[[int, np.random.Generator], np.ndarray] = lambda client, rng: np.eye(COLUMNS)[0],
    metadata: Mapping[str, tuple[object, ...]] | None = None,
) -> Federation:
    """Two Gaussian classes at ``+-1.2 direction``, everything else standard normal, then moved.

    Args:
        seed: of everything.
        clients: how many.
        sizes: train, validation and test rows of a client together.
        prior: probability of the second class.
        move: added to the inputs.
        direction: of unit length, along which the classes lie.
        metadata: columns.
    """
    inputs, targets, owner = [], [], []
    for client in range(clients):
        rng = generator(seed, "world", client)
        rows = sizes(client)
        labels = (rng.random(rows) < prior(client, rng)).astype(np.int64)
        axis, offset = direction(client, rng), move(client, rng)
        inputs.append(rng.standard_normal((rows, COLUMNS)) + 1.2 * (2 * labels - 1)[:, None] * axis + offset)
        targets.append(labels)
        owner += [f"c{client:02}"] * rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluresWarning)
        made = from_arrays(np.concatenate(inputs).astype(np.float32), np.concatenate(targets), np.array(owner))
    return replace(made, name="world", metadata=dict(metadata or {}))


def along(angle: float) -> np.ndarray:
    """A unit vector in the plane of the first two columns."""
    return np.cos(angle) * np.eye(COLUMNS)[0] + np.sin(angle) * np.eye(COLUMNS)[1]


WORLDS: Mapping[str, Callable[[int], Federation]] = {
    "none": world,
    "labels": lambda seed: world(seed, prior=lambda client, rng: rng.uniform(0.05, 0.95)),
    "features": lambda seed: world(seed, move=lambda client, rng: np.r_[0, 0, 1.5 * rng.standard_normal(4)]),
    "concept": lambda seed: world(
        seed, sizes=lambda client: 2 * ROWS, direction=lambda client, rng: along(rng.uniform(0, 2 * np.pi))
    ),
    "quantity": lambda seed: world(seed, sizes=lambda client: 40 + 15 * 2 ** (client // 2)),
    "clusters": lambda seed: world(
        seed,
        sizes=lambda client: 2 * ROWS,
        direction=lambda client, rng: along(2 * np.pi / 3 * (client % 3)),
        metadata={"site": tuple("ABC"[client % 3] for client in range(CLIENTS))},
    ),
}
"""Kind of difference -> function of a seed that makes a federation."""
FIRES: Mapping[str, frozenset[str]] = {
    **{name: frozenset({name}) for name in WORLDS},
    "none": frozenset(),
    "clusters": frozenset({"clusters", "concept"}),
}
"""What the diagnosis must find; groups differ in their targets given inputs."""
