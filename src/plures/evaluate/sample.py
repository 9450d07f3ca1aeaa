"""A sample of the clients that speaks for all of them where there are too many to score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plures.errors import PluresError
from plures.evaluate.scores import Floats
from plures.federation import Federation
from plures.run.randomness import fold, name_key

QUANTILE = 1.96
"""97.5 % quantile of the normal distribution."""


def sampled(federation: Federation, count: int | None) -> list[int] | None:
    """Positions of the clients whose scores are read, in increasing order; ``None`` for all.

    A simple random sample without replacement. It depends on the clients' names alone, so every method, seed and trial
    of a comparison is judged by the same clients.

    Args:
        federation: the clients.
        count: how many are scored; ``None`` for all.

    Raises:
        PluresError: if there are not as many clients, or no interval follows from so few.
    """
    if count is None:
        return None
    if not 2 <= count <= len(federation):
        raise PluresError(
            f"evaluate_clients={count}: give a number from 2 to {len(federation)}, the clients of "
            f"{federation.name!r}, or leave it out to score all of them"
        )
    order = np.argsort(fold(name_key("evaluated clients"), federation.names.keys), kind="stable")
    return None if count == len(federation) else sorted(order[:count].tolist())


def among(count: int | None) -> dict[str, Any]:
    """The sample as a setting on which results depend; none where all clients are scored."""
    return {} if count is None else {"evaluate_clients": count}


def sampling_width(values: Floats, population: int) -> float:
    """Half width of the 95 % confidence interval of the mean over all clients, from a sample of them.

    That is ``1.96 s sqrt((1 - n / N) / n)``, with the standard deviation ``s`` of the ``n`` sampled values (Cochran
    1977, eq. 2.20); NaN where the sample says nothing of it.

    Args:
        values: ``(clients,)`` of the sample; NaN where there is no value.
        population: number of all clients.

    Examples:
        >>> round(sampling_width(np.array([0.5, 0.7, 0.9, 0.7]), 100), 4)
        0.1568
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.nan
    with np.errstate(invalid="ignore"):
        rest = max(0.0, 1 - len(known) / population)
        return float(QUANTILE * known.std(ddof=1) * math.sqrt(rest / len(known)))
