"""q-FFL, fair federated learning."""

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Shared,
    Start,
    State,
    Visit,
    interpolate,
    squared_distance,
)
from plures.methods.entry import entry, remark, require


@entry(
    "q-FFL", "fairness", "Li, Sanjabi, Beirami, Smith 2020, ICLR, Algorithm 2 (q-FedAvg)", {"q": (0.1, 0.5, 1.0, 5.0)}
)
def qffl(q: float = 1.0) -> Method:
    """One global model; clients with a higher loss count more, so that accuracy is spread more evenly.

    ``min sum_i f_i^(q+1) / (q+1)``. With ``L = 1/lr``, ``dw_i = L (w - x_i)`` and the training loss ``F_i`` at the
    received model, the paper's server subtracts ``sum_i F_i^q dw_i / sum_i h_i`` with
    ``h_i = q F_i^(q-1) ||dw_i||^2 + L F_i^q``. Here a client sends ``w - F_i^q dw_i / h_i`` and the server takes the
    mean with weights ``h_i``, which is the same and needs only sums. Clients count equally, however many examples they
    have. The model and the number ``h_i / L`` are sent up, the model down. Running statistics are sent as they
    are and averaged with the same weights. ``lr`` is the rate of the round, whatever the local
    optimizer: with momentum or Adam ``dw_i`` does not have the size of a gradient.

    Args:
        q: fairness; 0 is FedAvg with uniform weights, large values approach the minimum of the worst loss.
    """
    require(q >= 0, f"qffl: q={q} must not be negative")
    remark(q == 0, "qffl with q=0 is fedavg with uniform weights")

    def measured(x: State, received: State, batch: Batch) -> Leaves:
        return {"loss": batch.loss(received.model), "moved": squared_distance(x.model, received.model)}

    def fair(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        loss = visit.measured["loss"] + 1e-10
        growth = 1 + q * visit.measured["moved"] / (visit.lr.clamp(min=1e-30) * loss)
        return {"model": interpolate(x.model, received.model, 1 / growth), "weight": {"weight": loss**q * growth}}

    def one(start: Start) -> Leaves:
        return {"weight": torch.ones((), dtype=start.network.dtype)}

    def weigh(x: State) -> Tensor:
        return x.weight["weight"]

    return Method(
        layout={"model": Shared(), "weight": Personal()},
        slots={"weight": one},
        schedule=(Phase(), Assign(("model", "weight"), fair, measured)),
        combine=Combine(weigh),
    )
