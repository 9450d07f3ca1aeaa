"""Label skew: do clients' labels differ by more than chance?"""

from __future__ import annotations

import numpy as np

from plures.diagnose.chance import PERMUTATIONS, Floats, Ints
from plures.diagnose.result import LabelSkew
from plures.diagnose.sample import BINS, binned
from plures.federation import Federation
from plures.federation.seeding import generator


def label_skew(federation: Federation, seed: int = 0, permutations: int = PERMUTATIONS) -> LabelSkew:
    """Mean total variation distance of the clients' label frequencies to the pooled ones, over all train rows.

    For chance, every client's labels are drawn from the pooled labels without replacement; the test statistic
    is G, the likelihood ratio. Targets of a regression are binned into tenths of the pooled targets, and distances are
    means over outputs.
    """
    rng = generator(seed, "label skew")
    index = federation.splits["train"]
    rows, owner = index.rows.cpu().numpy(), np.repeat(np.arange(len(federation)), index.sizes.numpy())
    tables = [counts(labels, owner, len(federation)) for labels in columns(federation, rows)]
    distance = np.mean([total_variation(table) for table in tables], axis=0)
    statistic = sum(likelihood_ratio(table) for table in tables)
    drawn, extreme = [], 0
    for _ in range(permutations):
        dealt = [deal(table, rng) for table in tables]
        drawn.append(np.nanmean(np.mean([total_variation(table) for table in dealt], axis=0)))
        extreme += sum(map(likelihood_ratio, dealt)) >= statistic * (1 - 1e-12)
    found, chance = float(np.nanmean(distance)), float(np.mean(drawn))
    present = [float((table > 0).sum(1)[table.sum(1) > 0].mean()) for table in tables]
    return LabelSkew(
        distance=found,
        chance=chance,
        excess=max(0.0, found - chance),
        p=(1 + extreme) / (1 + permutations),
        labels=tables[0].shape[1],
        labels_present=float(np.mean(present)),
        clients=[None if np.isnan(x) else float(x) for x in distance],
    )


def columns(federation: Federation, rows: Ints) -> list[Ints]:
    """Labels of the rows, one column, or one per label for several labels; for numbers one binned column per output."""
    own = federation.targets.cpu()
    flat = own.double().reshape(len(own), -1).numpy()
    if federation.task.probable:
        return [flat[rows, output].astype(np.int64) for output in range(flat.shape[1])]
    return [binned(flat[:, output], federation, rows, BINS) for output in range(flat.shape[1])]


def counts(labels: Ints, owner: Ints, clients: int) -> Ints:
    """Counts of each occurring label per client, ``(clients, labels)``."""
    _, codes = np.unique(labels, return_inverse=True)
    width = int(codes.max()) + 1
    return np.bincount(owner * width + codes, minlength=clients * width).reshape(clients, width).astype(np.int64)


def total_variation(table: Ints) -> Floats:
    """``sum_k |p_ik - p_k| / 2`` of each client, ``(clients,)``; NaN for a client without rows."""
    with np.errstate(invalid="ignore"):
        own = table / table.sum(1, keepdims=True)
    return np.asarray(np.abs(own - table.sum(0) / table.sum()).sum(1) / 2, dtype=np.float64)


def likelihood_ratio(table: Ints) -> float:
    """``G = 2 sum O log(O / E)`` against equal frequencies at all clients."""
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    seen = table > 0
    return float(2 * (table[seen] * np.log(table[seen] / expected[seen])).sum())


def deal(table: Ints, rng: np.random.Generator) -> Ints:
    """Assign the same labels to the clients at random, keeping their sizes."""
    left = table.sum(0)
    dealt = np.zeros_like(table)
    for client, size in enumerate(table.sum(1).tolist()):
        dealt[client] = rng.multivariate_hypergeometric(left, size)
        left = left - dealt[client]
    return dealt
