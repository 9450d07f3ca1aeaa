"""EWC, elastic weight consolidation, with a proximal term: for a sequence of experiences."""

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Leaves,
    Method,
    Personal,
    Phase,
    Shared,
    Start,
    State,
    Visit,
    squared_distance,
    task_loss,
    zeros,
)
from plures.method.curvature import fisher
from plures.method.needs import curvature
from plures.methods.entry import entry, remark, require


@entry(
    "EWC + proximal",
    "continual",
    "Kirkpatrick et al. 2017, PNAS, equation 3; online: Schwarz et al. 2018, ICML; proximal: Li et al. 2020, MLSys",
    {"lam": (0.1, 1.0, 10.0, 100.0)},
)
def ewc(lam: float = 1.0, mu: float = 0.01, decay: float = 1.0) -> Method:
    """FedAvg over a stream of experiences that penalises changes to weights that mattered for earlier ones.

    Local objective: ``f_i(x) + lam/2 sum_j F_ij (x_j - a_j)^2 + mu/2 ||x - w||^2``, with the received model ``w``. When
    an experience ends, each client that took part sets the anchor ``a`` to the global model and adds to ``F_i`` the
    diagonal Fisher information there, a mean over its training examples: so ``lam=1`` weighs the earlier experience's
    mean loss, as a quadratic, like the present one's. ``F_i`` and ``a`` stay with the client; communication is that of
    FedAvg. Within the first experience the method is FedProx.

    Args:
        lam: strength of the penalty, with the factor 1/2.
        mu: strength of the proximal term, with the factor 1/2.
        decay: share of the earlier information kept when an experience ends; with 1, it adds up.
    """
    require(lam >= 0 and mu >= 0, f"ewc: lam={lam}, mu={mu} must not be negative")
    require(0 <= decay <= 1, f"ewc: decay={decay} must lie in [0, 1]")
    remark(lam == 0, "ewc with lam=0 is fedprox")

    def elastic(x: State, received: State, batch: Batch) -> Tensor:
        gaps = [(f * (x.model[k] - x.anchor[k]).square()).sum() for k, f in x.fisher.items()]
        tether = mu / 2 * squared_distance(x.model, received.model)
        return task_loss(x.model, batch) + lam / 2 * torch.stack(gaps).sum() + tether

    def at_the_end(x: State, received: State, batch: Batch) -> Leaves:
        return fisher(x.model, batch)

    def consolidate(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"fisher": {k: decay * f + visit.measured[k] for k, f in x.fisher.items()}, "anchor": x.model}

    def nothing(start: Start) -> Leaves:
        curvature(start, "ewc")
        return zeros(start)

    return Method(
        layout={"model": Shared(), "fisher": Personal(), "anchor": Personal()},
        slots={"fisher": nothing},
        schedule=(Phase(objective=elastic),),
        between=(Assign(("fisher", "anchor"), consolidate, at_the_end),),
    )
