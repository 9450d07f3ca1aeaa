"""Partition unowned examples among clients: each function returns the client of every row.

The result is ``(n,)`` int64, -1 for a row that is not used, and goes to ``from_arrays`` as its client column. Every
function is a pure function of its arguments and either finishes after a bounded number of draws or raises at once.
The partition by a metadata column needs no function: that column is the client column.

    >>> import numpy as np
    >>> from plures.federation import dirichlet_per_client, from_arrays
    >>> labels = np.arange(1000) % 10
    >>> owner = dirichlet_per_client(labels, 5, alpha=1.0, seed=0)
    >>> federation = from_arrays(np.zeros((1000, 3)), labels, owner)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.errors import PluresError, PluresWarning, suggestion
from plures.federation.seeding import generator

Owner = NDArray[np.int64]
How = Literal["iid", "dirichlet", "dirichlet_per_class", "pathological", "quantity"]
HOWS: tuple[How, ...] = ("iid", "dirichlet", "dirichlet_per_class", "pathological", "quantity")
READS: Mapping[How, frozenset[str]] = MappingProxyType(
    {
        "iid": frozenset(),
        "dirichlet": frozenset({"alpha"}),
        "dirichlet_per_class": frozenset({"alpha", "min_size"}),
        "pathological": frozenset({"classes_per_client"}),
        "quantity": frozenset({"alpha", "min_size"}),
    }
)
"""The options of `partition` that each of them reads, besides clients and seed."""

DRAWS = 10
SMALL = 0.1
"""Below this concentration a client whose classes have run out gets a single other class, not a mixture."""


def partition(
    labels: ArrayLike | Tensor,
    how: How = "dirichlet",
    clients: int = 20,
    *,
    alpha: float | None = None,
    classes_per_client: int | None = None,
    min_size: int | None = None,
    seed: int = 0,
) -> Owner:
    """One of the partitions by name, for loaders and the command line; `READS` says which options each reads.

    Args:
        labels: ``(n,)`` class of each row.
        how: ``iid``, ``dirichlet`` (`dirichlet_per_client`), ``dirichlet_per_class``, ``pathological`` or
            ``quantity`` (`quantity_skew`).
        clients: how many.
        alpha: concentration, for the two Dirichlet partitions and ``quantity``; default .1.
        classes_per_client: for ``pathological``; default 2.
        min_size: minimum number of rows of a client, for ``dirichlet_per_class`` and ``quantity``; default 10.
        seed: of all draws.

    Raises:
        PluresError: also for an option that the partition does not read.

    Examples:
        >>> from plures.federation import partition
        >>> digits = np.arange(100) % 10
        >>> owner = partition(digits, "pathological", clients=5, classes_per_client=2)
        >>> [len(np.unique(digits[owner == client])) for client in range(5)]
        [2, 2, 2, 2, 2]
    """
    if how not in HOWS:
        raise PluresError(f"partition {how!r} is unknown; {suggestion(how, HOWS, 'choose among')}")
    given = {"alpha": alpha, "classes_per_client": classes_per_client, "min_size": min_size}
    for option, value in given.items():
        if value is not None and option not in READS[how]:
            raise PluresError(
                f"{option} has no effect on partition={how!r}, which reads "
                f"{', '.join(['clients', *sorted(READS[how])])}; leave it out"
            )
    rows = len(_labels(labels))
    alpha, min_size = 0.1 if alpha is None else alpha, 10 if min_size is None else min_size
    each = 2 if classes_per_client is None else classes_per_client
    match how:
        case "iid":
            return iid(rows, clients, seed=seed)
        case "dirichlet":
            return dirichlet_per_client(labels, clients, alpha=alpha, seed=seed)
        case "dirichlet_per_class":
            return dirichlet_per_class(labels, clients, alpha=alpha, min_size=min_size, seed=seed)
        case "pathological":
            return pathological(labels, clients, classes_per_client=each, seed=seed)
        case "quantity":
            return quantity_skew(rows, clients, alpha=alpha, min_size=min_size, seed=seed)


def iid(rows: int, clients: int, *, seed: int = 0) -> Owner:
    """Rows in random order, dealt round robin: sizes differ by at most one.

    Raises:
        PluresError: if there are more clients than rows.
    """
    _check(rows, clients, 1)
    owner = np.empty(rows, dtype=np.int64)
    owner[generator(seed, "iid").permutation(rows)] = np.arange(rows) % clients
    return owner


def dirichlet_per_client(
    labels: ArrayLike | Tensor,
    clients: int,
    *,
    alpha: float,
    prior: ArrayLike | None = None,
    seed: int = 0,
) -> Owner:
    """Dirichlet over classes for each client (Hsu, Qi, Brown 2019), equal sizes.

    Client i draws q_i ~ Dir(alpha * prior) and then n_i = floor(n / clients) rows without replacement, each of class k
    with probability q_ik. When a class runs out, q_i is renormalised over the classes that are left (should q_i give
    them no weight: over what is left of them, and for alpha below 0.1 one class is drawn in that proportion, which
    keeps clients of one class). Later clients therefore get more of the common remainder, as in the paper's own code.
    The n mod clients rows that remain are not used; a warning says so.

    Args:
        labels: ``(n,)`` classes.
        clients: how many.
        alpha: concentration > 0; towards 0 a client has one class, towards infinity the prior.
        prior: weight of each class in sorted order, sum 1; the classes' frequencies if not given.
        seed: of all draws.
    """
    rng = generator(seed, "dirichlet per client")
    codes, counts = _classes(labels)
    size = _check(len(codes), clients, 1, alpha)
    weights = counts / counts.sum() if prior is None else np.asarray(prior, dtype=np.float64)
    if weights.shape != counts.shape or (weights <= 0).any():
        raise PluresError(f"prior: give one positive weight for each of the {len(counts)} classes")
    pools = _pools(codes, counts, rng)
    taken = np.zeros_like(counts)
    owner = np.full(len(codes), -1, dtype=np.int64)
    for client, q in enumerate(rng.dirichlet(alpha * weights / weights.sum(), clients)):
        want = np.zeros_like(counts)
        while (short := size - int(want.sum())) > 0:  # each turn fills the client or empties a class
            left = counts - taken - want
            chance = np.where(left > 0, q, 0)
            if chance.sum() > 1e-12:
                chance = chance / chance.sum()
            elif alpha < SMALL:  # what a Dirichlet tends to as alpha goes to 0: one class
                chance = np.eye(len(left))[rng.choice(len(left), p=left / left.sum())]
            else:
                chance = left / left.sum()
            want += np.minimum(rng.multinomial(short, chance), left)
        for k in np.flatnonzero(want):
            owner[pools[k][taken[k] : taken[k] + want[k]]] = client
        taken += want
    return owner


def dirichlet_per_class(
    labels: ArrayLike | Tensor, clients: int, *, alpha: float, min_size: int = 10, seed: int = 0
) -> Owner:
    """Dirichlet over clients for each class (Yurochkin et al. 2019; the convention of most public code).

    For each class p ~ Dir(alpha, ..., alpha) over the clients, and the class's rows in random order are cut at the
    cumulative sums of p; sizes are unequal, every row is used. Ten independent draws are tried for one in which every
    client has ``min_size`` rows. If none has (usual for many clients or small alpha; public code would loop
    forever), the draw with the largest smallest client is refilled: a client that is short gets rows of the classes
    that the draw gives it, in proportion (of one class, if that is negligible), each from the currently largest
    client with rows of the class to spare. So a smaller alpha still means fewer classes per client, refilled or not;
    sizes are more equal than in the draw.

    Args:
        labels: ``(n,)`` classes.
        clients: how many.
        alpha: concentration > 0.
        min_size: least number of rows of a client.
        seed: of all draws.

    Raises:
        PluresError: if ``clients * min_size`` is more than there are rows.
    """
    rng = generator(seed, "dirichlet per class")
    codes, counts = _classes(labels)
    _check(len(codes), clients, min_size, alpha)
    best, shares, kept = -1, np.empty((0, 0), dtype=np.int64), np.empty((0, 0))
    for _ in range(DRAWS):
        p = rng.dirichlet(np.full(clients, alpha), len(counts))
        ends = np.cumsum(p, axis=1)
        cuts = np.floor(ends * counts[:, None] + 0.5).astype(np.int64).clip(max=counts[:, None])
        cuts[:, -1] = counts
        drawn = np.diff(cuts, axis=1, prepend=0)
        smallest = int(drawn.sum(0).min())
        if smallest > best:
            best, shares, kept = smallest, drawn, p
        if best >= min_size:
            break
    owner = np.empty(len(codes), dtype=np.int64)
    pools = _pools(codes, counts, rng)
    shares = _refilled(shares, kept * counts[:, None], min_size, rng)
    for pool, share in zip(pools, shares, strict=True):
        owner[pool] = np.repeat(np.arange(clients), share)
    return owner


def pathological(labels: ArrayLike | Tensor, clients: int, *, classes_per_client: int = 2, seed: int = 0) -> Owner:
    """Exactly k classes for each client (after McMahan et al. 2017, whose shards give at most k).

    One client after the other takes the k classes that the fewest clients hold so far (ties at random), and the rows
    of a class are dealt round robin, in random order, to those who hold it. Rows of a class that nobody holds (only
    if clients * k is less than the number of classes) are not used; a warning says so.

    Raises:
        PluresError: if k exceeds the number of classes, or a class has fewer rows than holders.
    """
    rng = generator(seed, "pathological")
    codes, counts = _classes(labels)
    _check(len(codes), clients, 1)
    if not 1 <= classes_per_client <= len(counts):
        raise PluresError(f"classes_per_client={classes_per_client}: give 1 to {len(counts)}, the number of classes")
    holders = np.zeros((len(counts), clients), dtype=bool)
    for client in rng.permutation(clients):
        rank = holders.sum(1) + rng.random(len(counts))
        holders[np.argsort(rank)[:classes_per_client], client] = True
    short = np.flatnonzero(holders.sum(1) > counts)
    if len(short):
        k = int(short[0])
        raise PluresError(
            f"class {np.unique(_labels(labels))[k]} has {counts[k]} rows for {int(holders[k].sum())} clients; "
            f"lower clients={clients} or classes_per_client={classes_per_client}"
        )
    owner = np.full(len(codes), -1, dtype=np.int64)
    for pool, held in zip(_pools(codes, counts, rng), holders, strict=True):
        own = rng.permutation(np.flatnonzero(held))
        if len(own):
            owner[pool] = own[np.arange(len(pool)) % len(own)]
    if unused := int((owner < 0).sum()):
        warnings.warn(
            f"{unused} of {len(owner)} rows are not used: {clients} clients of {classes_per_client} classes hold "
            f"{int(holders.any(1).sum())} of {len(counts)}",
            PluresWarning,
            stacklevel=2,
        )
    return owner


def quantity_skew(rows: int, clients: int, *, alpha: float, min_size: int = 10, seed: int = 0) -> Owner:
    """Sizes n * p with p ~ Dir(alpha, ..., alpha), rows at random (Li, Diao, Chen, He 2022).

    This is `dirichlet_per_class` with one class, including its ten draws and its repair for ``min_size``.
    """
    return dirichlet_per_class(np.zeros(rows, dtype=np.int64), clients, alpha=alpha, min_size=min_size, seed=seed)


def _labels(labels: ArrayLike | Tensor) -> NDArray[np.generic]:
    return labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)


def _classes(labels: ArrayLike | Tensor) -> tuple[Owner, Owner]:
    """Class number of each row and rows of each class."""
    values = _labels(labels)
    if values.ndim != 1 or len(values) == 0:
        raise PluresError(f"labels: expected (n,) with at least one row, got shape {values.shape}")
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    return codes.astype(np.int64), counts.astype(np.int64)


def _pools(codes: Owner, counts: Owner, rng: np.random.Generator) -> list[Owner]:
    """The rows of each class in random order."""
    shuffled = rng.permutation(len(codes))
    ordered = shuffled[np.argsort(codes[shuffled], kind="stable")]
    return np.split(ordered, counts.cumsum()[:-1])


def _check(rows: int, clients: int, min_size: int, alpha: float = 1.0) -> int:
    """Refuse an impossible partition; returns the equal share of a client."""
    if clients < 1:
        raise PluresError(f"clients={clients}: give at least one")
    if not 0 < alpha < np.inf:
        raise PluresError(f"alpha={alpha}: give a positive number")
    if min_size < 1:
        raise PluresError(f"min_size={min_size}: give at least 1, because a client without rows cannot take part")
    if clients * min_size > rows:
        raise PluresError(
            f"{clients} clients with at least {min_size} rows each need {clients * min_size} rows, "
            f"but there are {rows}; lower clients or min_size"
        )
    return rows // clients


def _refilled(shares: Owner, expected: NDArray[np.float64], min_size: int, rng: np.random.Generator) -> Owner:
    """Rows of each class at each client ``(classes, clients)`` after every client has ``min_size`` of them.

    Args:
        shares: the rows of the draw.
        expected: the same before rounding.
        min_size: minimum number of rows of a client.
        rng: decides from which classes a client that is short gets rows.
    """
    shares = shares.copy()
    sizes = shares.sum(0)
    for client in np.flatnonzero(sizes < min_size):
        own = expected[:, client]
        own = own if own.sum() > 1e-12 else np.eye(len(own))[rng.choice(len(own), p=shares.sum(1) / shares.sum())]
        wanted = np.repeat(np.arange(len(own)), rng.multinomial(min_size - sizes[client], own / own.sum()))
        for k in wanted:
            spare = (shares > 0) & (sizes > min_size)
            if not spare[k].any():
                k = np.where(spare.any(1), own, -1).argmax()
            giver = np.where(spare[k], sizes, -1).argmax()
            shares[k, giver] -= 1
            shares[k, client] += 1
            sizes[giver] -= 1
            sizes[client] += 1
    return shares
