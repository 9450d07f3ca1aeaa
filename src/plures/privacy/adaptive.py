"""A clipping bound that follows a quantile of the clients' norms (Andrew, Thakkar, McMahan, Ramaswamy 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from plures.errors import PluresError
from plures.method import Cohort, Leaves

SLOT, LEAF = "clipping", "norm"
"""The slot and the leaf that hold the bound, which every client receives."""
BOUND = f"{SLOT}/{LEAF}"


def shared_out(noise: float, votes: float) -> float:
    """Noise on the changes, so that changes and votes together spend what ``noise`` on the changes alone would.

    ``(z^-2 - (2 sigma_b)^-2)^-1/2``: a vote of +-1/2 for "my norm is within the bound" has sensitivity 1/2.

    Args:
        noise: for both together.
        votes: standard deviation of the noise on the sum of votes.

    Examples:
        >>> round(shared_out(1.0, 5.0), 10)
        1.0050378153
    """
    if noise == 0:
        return 0.0
    if 2 * votes <= noise:
        raise PluresError(
            f"votes={votes:g} of noise on the sum of votes spends more than noise={noise:g} allows: give more than "
            f"{noise / 2:g}, or let more clients take part"
        )
    return float((noise**-2 - (2 * votes) ** -2) ** -0.5)


@dataclass(frozen=True)
class Geometric:
    """The server's step of the bound: ``C <- C exp(-lr (b - quantile))`` with ``b`` the noisy share within ``C``.

    Attributes:
        quantile: share of the clients whose norm should be within the bound.
        lr: how fast it follows.
    """

    quantile: float
    lr: float = 0.2

    def start(self, value: Leaves) -> Leaves:
        return {}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        share = {k: 0.5 + combined[k] - t for k, t in old.items()}
        return {k: t * (-self.lr * (share[k] - self.quantile)).exp() for k, t in old.items()}, memory


def check(quantile: float, lr: float) -> None:
    """Refuse what no bound can follow."""
    if not 0 < quantile < 1:
        raise PluresError(f"quantile={quantile}: give the share of clients that are not clipped, between 0 and 1")
    if not 0 < lr < math.inf:
        raise PluresError(f"quantile_lr={lr}: give a positive number")
