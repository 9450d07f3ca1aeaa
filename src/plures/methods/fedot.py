"""FedOT: personal input maps that transport every client's inputs to a common distribution."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Relax,
    Shared,
    Start,
    State,
    Visit,
    dot,
)
from plures.method.representation import blank
from plures.methods.entry import entry, remark, require

FLOOR = 0.1
"""Smallest standard deviation used to normalise a client's features, so that constant ones are not blown up."""


def barycentre_maps(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Optimal maps of normal distributions to their Wasserstein barycentre, per feature: ``x -> scale x + shift``.

    The barycentre of ``N(m_i, s_i^2)`` with equal weights is ``N(mean m_i, (mean s_i)^2)``, and the map to it is
    ``T_i(x) = m + s/s_i (x - m_i)``.

    Args:
        means: ``(clients, features)``.
        deviations: ``(clients, features)`` standard deviations, positive.

    Returns:
        Scale and shift, ``(clients, features)`` each.
    """
    require(bool((deviations > 0).all()), "barycentre_maps: a standard deviation is not positive: drop the feature")
    scale = deviations.mean(0) / deviations
    return scale, means.mean(0) - scale * means


def pair(one: str, other: str, first: float = 0.0, second: float = 0.0) -> Callable[[Start], Leaves]:
    """A slot of two numbers for every feature."""

    def start(start: Start) -> Leaves:
        require(start.setting.dtype.is_floating_point, "fedot maps real inputs, but these are integers (tokens)")
        none = blank(start, *start.setting.features)
        return {one: none + first, other: none + second}

    return start


def carried(x: State, batch: Batch) -> Batch:
    """The batch with inputs ``psi(x)``."""
    normal = (batch.input - x.own["mean"]) / x.own["deviation"]
    return replace(batch, inputs=batch.input + x.map["scale"] * normal + x.map["shift"])


def spread(x: State, received: State, batch: Batch) -> Leaves:
    """Mean of the client's inputs and of their squares."""
    return {"mean": batch.mean(batch.input), "square": batch.mean(batch.input.square())}


def know(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """Mean and standard deviation of the client's inputs."""
    mean = visit.measured["mean"]
    return {"own": {"mean": mean, "deviation": (visit.measured["square"] - mean.square()).clamp(min=FLOOR**2).sqrt()}}


def moments(x: State, received: State, batch: Batch) -> Leaves:
    """Mean of ``z^2/2`` and of ``z`` over the transported inputs ``z``."""
    z = carried(x, batch).input
    return {"square": batch.mean(z.square()) / 2, "linear": batch.mean(z)}


def oppose(x: State, received: State, batch: Batch) -> Tensor:
    """Minus the excess of the potential's cost to this client over its cost to the common distribution."""
    return dot(x.potential, received.law) - dot(x.potential, moments(x, received, batch))


def learn(x: State, received: State, batch: Batch) -> Tensor:
    """Task loss on the transported inputs."""
    return carried(x, batch).loss(x.model)


def send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """Changes of the potential, for the mean of all potentials, and moments, for the common distribution."""
    moved = {k: t + x.potential[k] - received.potential[k] for k, t in received.common.items()}
    return {"common": moved, "law": visit.measured}


@entry(
    "FedOT",
    "representation",
    "Farnia, Reisizadeh, Pedarsani, Jadbabaie 2022, arXiv:2206.02468",
    {"lam": (0.1, 1.0, 10.0)},
)
def fedot(lam: float = 1.0, map_lr: float = 0.05, potential_lr: float = 0.05, visits: int = 5) -> Method:
    """A global model on inputs that each client's own map transports, at least cost, to a common distribution.

    ``min_w min_psi max_phi mean_i E[f(w; psi_i(X), Y) + lam |X - psi_i(X)|^2 + lam phi_i(psi_i(X))]`` with
    ``sum_i phi_i = 0``: the potentials ``phi_i`` penalise differences between the distributions of the ``psi_i(X)``.
    Each visit descends in the map, ascends in the potential and trains the model, in this order.

    Only the paper's abstract was available; our choices: ``psi(x) = x + a (x - m)/s + b`` for every feature, with
    the client's own mean ``m`` and deviation ``s``, starts as the identity; ``phi(z) = <q, z^2>/2 + <r, z>``, so means
    and variances of the features are aligned. The server keeps the mean of all potentials, which clients subtract, and
    the mean over the last cohort of ``E[z]`` and ``E[z^2]/2``, against which a potential ascends: so a newcomer is also
    transported to the common distribution. Map steps follow the objective divided by ``lam``. Standardise the inputs.

    Args:
        lam: cost of transport, and scale of the potentials; the larger, the less a map serves the loss.
        map_lr: learning rate of the maps; 0 keeps the identity, which is FedAvg.
        potential_lr: learning rate of the potentials; 0 does not align the distributions.
        visits: visits an unseen client makes to fit its map.
    """
    require(lam > 0, f"fedot: lam={lam} must be positive")
    require(map_lr >= 0 and potential_lr >= 0, f"fedot: map_lr={map_lr}, potential_lr={potential_lr} must not be < 0")
    remark(map_lr == 0, "fedot with map_lr=0 is fedavg")

    def align(x: State, received: State, batch: Batch) -> Tensor:
        there, potential = carried(x, batch), {k: t - received.common[k] for k, t in x.potential.items()}
        cost = batch.mean((there.input - batch.input).square().flatten(1).sum(1))
        return cost + dot(potential, moments(x, received, batch)) + there.loss(x.model) / lam

    return Method(
        layout={
            **dict.fromkeys(("model", "common", "law"), Shared()),
            **dict.fromkeys(("own", "map"), Personal()),
            "potential": Personal(unseen="common"),
        },
        slots={
            "own": pair("mean", "deviation", 0.0, 1.0),
            "map": pair("scale", "shift"),
            "potential": pair("square", "linear"),
            "common": pair("square", "linear"),
            "law": pair("square", "linear", 0.5, 0.0),
        },
        schedule=(
            Assign(("own",), know, spread),
            Phase("map", align, lr=map_lr, stream="map"),
            Phase("potential", oppose, lr=potential_lr, stream="map"),
            Phase(objective=learn),
            Assign(("common", "law"), send, moments),
        ),
        combine={"common": Combine("uniform", Relax("participation")), "law": Combine("uniform")},
        predict=Predict(visits=visits, outputs=lambda x, batch: carried(x, batch).outputs(x.model)),
    )
