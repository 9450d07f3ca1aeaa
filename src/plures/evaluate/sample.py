"""A random sample of the clients to score if there are too many to score all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from plures.errors import PluresError
from plures.evaluate.scores import Floats
from plures.federation import Federation
from plures.run.randomness import fold, name_key

QUANTILE = 1.96
"""97.5 % quantile of the normal distribution."""


def sampled(federation: Federation, count: int | None, of: Sequence[int] | None = None) -> list[int] | None:
    """Positions of the clients that are scored, in increasing order; ``None`` for all.

    A simple random sample without replacement. It depends only on the clients' names, so every method, seed and trial
    of a comparison is judged by the same clients.

    Args:
        federation: the clients.
        count: number of clients to score; ``None`` for all.
        of: positions of the clients that may be scored; default: all.

    Raises:
        PluresError: if there are fewer clients, or ``count`` is too small for a confidence interval.
    """
    people = len(federation) if of is None else len(of)
    if count is None or count == people > 1:
        return None if of is None else sorted(of)
    if not 2 <= count <= people:
        raise PluresError(
            f"evaluate_clients={count}: give a number from 2 to {people}, the {'' if of is None else 'honest '}clients "
            f"of {federation.name!r}, or leave it out to score all of them"
        )
    order = np.argsort(fold(name_key("evaluated clients"), federation.names.keys), kind="stable").tolist()
    allowed = set(order if of is None else of)
    return sorted([client for client in order if client in allowed][:count])


def honest_clients(clients: int, hostile: Sequence[int]) -> list[int] | None:
    """Positions of the clients that do not attack; ``None`` for all.

    Args:
        clients: number of all clients.
        hostile: positions of those that attack.
    """
    attacking = set(hostile)
    return [place for place in range(clients) if place not in attacking] if attacking else None


def among(count: int | None) -> dict[str, Any]:
    """The size of the sample as an entry of a fingerprint; empty if all clients are scored."""
    return {} if count is None else {"evaluate_clients": count}


def sampling_width(values: Floats, population: int) -> float:
    """Half width of the 95 % confidence interval of the mean over all clients, from a sample of them.

    That is ``1.96 s sqrt((1 - n / N) / n)``, with the standard deviation ``s`` of the ``n`` sampled values (Cochran
    1977, eq. 2.20); NaN with fewer than two values.

    Args:
        values: ``(clients,)`` values of the sample; NaN for a client without a value.
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
