"""A lower bound on epsilon by canaries: planted clients whose presence should be hidden, and is looked for."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel
from torch import nn

from plures.errors import PluresError
from plures.extras import needed
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Method
from plures.run import Participation, Run, Training
from plures.tasks import Regression

SURE = 0.95
"""Confidence in each of the two rates from which a bound follows."""
FEWEST = 20
"""Fewest clients among whom canaries are planted."""
FAR = 1e6
"""What canaries learn, far beyond any clip."""


class Canaries(BaseModel):
    """What an attacker found of the canaries.

    Attributes:
        planted: canaries that took part, of those that were judged.
        others: clients that were judged and sent nothing.
        found: share of the planted ones above the threshold.
        false: share of the others above it.
        bound: epsilon is at least this, with confidence 90 % if each rate has 95 %.
        claimed: epsilon by the accountant.
        delta: of both.
    """

    planted: int
    others: int
    found: float
    false: float
    bound: float
    claimed: float
    delta: float


def lower_bound(found: int, planted: int, false: int, others: int, delta: float = 0.0) -> float:
    """The smallest epsilon that fits two rates (Jagielski, Ullman, Oprea 2020), by Clopper and Pearson's intervals.

    An (epsilon, delta) mechanism has ``TPR <= exp(epsilon) FPR + delta`` and ``1 - FPR <= exp(epsilon) (1 - TPR) +
    delta``.

    Args:
        found: planted canaries that were found.
        planted: planted canaries.
        false: others that were taken for planted ones.
        others: others.
        delta: of (epsilon, delta).

    Examples:
        >>> [round(lower_bound(*counts), 4) for counts in ((450, 500, 50, 500), (500, 500, 0, 500))]
        [1.9471, 5.1144]
    """
    beta = needed("scipy.stats", "an audit by canaries", "audit").beta
    least = float(beta.ppf(1 - SURE, found, planted - found + 1)) if found else 0.0
    most = float(beta.ppf(SURE, false + 1, others - false)) if false < others else 1.0
    bounds = [0.0]
    for over, under in ((least, most), (1 - most, 1 - least)):
        if over > delta and under > 0:
            bounds.append(math.log((over - delta) / under))
    return max(bounds)


def canaries(method: Method, participation: Participation, rounds: int, number: int = 1000, seed: int = 0) -> Canaries:
    """Plant canaries in a run with a method's own wire, and look for them in the model that everybody gets.

    Half of the clients are canaries: each sends the longest change that the wire lets through, along an axis of its
    own. The others send nothing, which is the neighbouring world in which that client is absent. As the noise on
    different axes is independent, one run is as good as many (Andrew et al. 2023 do the same with random directions).
    A threshold is chosen on half of them and judged on the other half.

    Args:
        method: a method with a stage of differential privacy. Only its wire is used: what leaves clients is what it is.
        participation: how clients are drawn.
        rounds: number of rounds.
        number: clients, canaries or not; a multiple of 4, and at least 20. A thousand show at most epsilon 4.4.
        seed: root of all randomness.
    """
    if number < FEWEST or number % 4:
        raise PluresError(f"number={number}: give a multiple of 4, and at least {FEWEST}")
    run = Run(
        planted_in(number),
        lambda: planted_network(number),
        Method(wire=method.wire),
        Training(rounds, None, steps=1, optimizer=SGD(1.0)),
        participation=participation,
        seed=seed,
    )
    if run.spent() is None:
        raise PluresError("an audit by canaries needs a method with a stage of differential privacy, such as fedavg+dp")
    for _ in run.rounds():
        pass
    moved = run.states([0])["model"]["weight"].flatten().double().cpu()
    planted, others = moved[0::2], moved[1::2]
    chosen = threshold(planted[0::2], others[0::2])
    found, false = int((planted[1::2] > chosen).sum()), int((others[1::2] > chosen).sum())
    judged = number // 4
    spent = run.spent()
    assert spent is not None
    return Canaries(
        planted=judged,
        others=judged,
        found=found / judged,
        false=false / judged,
        bound=lower_bound(found, judged, false, judged, spent.delta),
        claimed=spent.epsilon,
        delta=spent.delta,
    )


def threshold(planted: torch.Tensor, others: torch.Tensor) -> float:
    """The threshold with the largest bound on epsilon among the values at hand."""
    tried = sorted({*planted.tolist(), *others.tolist()})
    bounds = [lower_bound(int((planted > t).sum()), len(planted), int((others > t).sum()), len(others)) for t in tried]
    best: float = tried[max(range(len(tried)), key=bounds.__getitem__)]
    return best


def planted_in(number: int) -> Federation:
    """Clients of one example; every second one is a canary, which learns a large number of its own."""
    inputs, targets = torch.zeros(number, 1), torch.zeros(number, number)
    inputs[0::2] = 1.0
    targets[range(0, number, 2), range(0, number, 2)] = FAR
    split = Split.of([torch.tensor([row]) for row in range(number)])
    names = tuple(f"client {row}" for row in range(number))
    return Federation("canaries", Regression(number), inputs, targets, names, dict.fromkeys(SPLITS, split))


def planted_network(number: int) -> nn.Module:
    layer = nn.Linear(1, number, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
