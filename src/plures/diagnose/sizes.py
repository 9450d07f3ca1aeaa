"""Quantity: how unequal are the clients' numbers of train rows?"""

from __future__ import annotations

import numpy as np

from plures.diagnose.chance import Floats
from plures.diagnose.result import Quantity
from plures.federation import Federation


def quantity(federation: Federation) -> Quantity:
    """Sizes of all clients' train splits."""
    sizes = federation.splits["train"].sizes.numpy().astype(np.float64)
    ordered = np.sort(sizes)[::-1]
    return Quantity(
        gini=gini(sizes),
        ratio=float(ordered[0] / max(ordered[-1], 1)),
        least=int(ordered[-1]),
        median=float(np.median(sizes)),
        most=int(ordered[0]),
        top_tenth=float(ordered[: max(1, len(ordered) // 10)].sum() / sizes.sum()),
    )


def gini(sizes: Floats) -> float:
    """``sum_ij |n_i - n_j| / (2 m sum n)``: 0 for equal sizes, ``1 - 1 / m`` if one of m clients has everything."""
    ordered, count = np.sort(sizes), len(sizes)
    rank = np.arange(1, count + 1)
    return float(((2 * rank - count - 1) * ordered).sum() / (count * ordered.sum()))
