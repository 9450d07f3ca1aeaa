"""Distributed differential privacy: what clients' shares of discrete noise, added before a secure sum, are worth.

Each of at least ``t`` clients adds a discrete Gaussian of ``1 / sqrt(t)`` of the wanted deviation to whole numbers
(Kairouz, Liu, Steinke 2021). Nobody, the server included, sees less noise than that of ``t`` clients.
"""

from __future__ import annotations

import math

from plures.codecs import SecureSum
from plures.method.wire import enough


def divergence(deviation: float, clients: int, size: int, sensitivity: float) -> float:
    """``e`` such that a sum with the noise of so many clients is ``e^2 / 2`` concentrated differentially private.

    Sums of discrete Gaussians are nearly, but not quite, discrete Gaussians (Kairouz et al. 2021, Theorem 1 and
    Proposition 14): ``min(sqrt(D^2 / (n s^2) + tau d / 2), D / (sqrt(n) s) + tau sqrt(d))`` with ``tau = 10 sum_k
    exp(-2 pi^2 s^2 k / (k + 1))`` for ``k`` from 1 to ``n - 1``.

    Args:
        deviation: ``s`` of each client's noise.
        clients: ``n``.
        size: ``d``, how many numbers are summed.
        sensitivity: ``D``, L2 norm by which a client can change the sum of whole numbers.

    Examples:
        >>> divergence(10.0, 4, 100, 20.0)
        1.0
        >>> round(divergence(0.5, 4, 1, 1.0), 4)
        1.3167
    """
    spread = 10 * sum(math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, clients))
    near = sensitivity / (math.sqrt(clients) * deviation)
    return min(math.sqrt(near**2 + spread * size / 2), near + spread * math.sqrt(size))


def worth(stage: SecureSum, clip: float, noise: float, clients: int, size: int, *, replaced: bool = False) -> float:
    """The noise multiplier of a Gaussian mechanism whose Rényi divergences a secure sum with noise does not exceed.

    Rounding to whole numbers moves a client by up to 1/2 in each, which counts: ``D = clip / (step n) + sqrt(d) / 2``.

    Args:
        stage: makes the whole numbers.
        clip: bound on a client's change.
        noise: deviation of the noise of the fewest clients that must come, in units of the bound.
        clients: most clients that are asked in a round.
        size: ``d``, how many numbers travel.
        replaced: whether neighbours have another client in the place of one.

    Examples:
        >>> round(worth(SecureSum(bound=1.0), 1.0, 2.0, 100, 1_000_000), 6)
        1.999907
    """
    unit = clip / (stage.step * clients)
    fewest = enough(clients, stage.share)
    sensitivity = (2 if replaced else 1) * (unit + math.sqrt(size) / 2)
    return 1 / divergence(noise * unit / math.sqrt(fewest), fewest, size, sensitivity)
