"""APFL, adaptive personalized federated learning."""

from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    Start,
    State,
    Visit,
    detach,
    dot,
    gradient,
    interpolate,
    task_loss,
)
from plures.methods.entry import entry, require


@entry(
    "APFL", "interpolation", "Deng, Kamani, Mahdavi 2020, arXiv:2003.13461, Algorithm 1", {"alpha": (0.25, 0.5, 0.75)}
)
def apfl(
    alpha: float = 0.5,
    adaptive_lr: float = 0.0,
    mix_with: Literal["local", "received"] = "local",
    visits: int = 5,
) -> Method:
    """Each client predicts with a mixture, parameter by parameter, of its own model and the global one.

    ``min_v f_i(alpha v + (1 - alpha) w)``: global and personal model are trained side by side on the same batches.
    An adaptive ``alpha`` takes one gradient step per visit, ``<v - w, grad f_i(alpha v + (1 - alpha) w)>``, and is
    clipped to [0, 1]. The running statistics of the personal slot are those of the mixture and follow its forward
    passes; with ``alpha = 0`` the mixture is the global model, and uses that model's.

    Args:
        alpha: weight of the personal model (its initial value, when adaptive).
        adaptive_lr: step of the adaptive rule (equation 10); 0 keeps ``alpha`` fixed.
        mix_with: which global model is mixed in training: the client's working copy (the paper) or the received one.
        visits: visits an unseen client makes, starting from the global model.
    """
    require(0 <= alpha <= 1, f"apfl: alpha={alpha} must lie in [0, 1]")
    require(adaptive_lr >= 0, f"apfl: adaptive_lr={adaptive_lr} must not be negative")

    def partner(x: State, received: State) -> Leaves:
        return detach(x.model if mix_with == "local" else received.model)

    def side_by_side(x: State, received: State, batch: Batch) -> Tensor:
        mixture = interpolate(x.personal, partner(x, received), x.alpha["alpha"])
        return task_loss(x.model, batch) + task_loss(mixture, batch, keep=x.personal)

    def slope(x: State, received: State, batch: Batch) -> Leaves:
        return gradient(interpolate(x.personal, x.model, x.alpha["alpha"]), batch)

    def adapt(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        direction = {k: x.personal[k] - x.model[k] for k in visit.measured}
        moved = x.alpha["alpha"] - adaptive_lr * dot(direction, visit.measured)
        return {"alpha": {"alpha": moved.clamp(0.0, 1.0)}}

    def start(start: Start) -> Leaves:
        return {"alpha": torch.tensor(alpha, dtype=start.network.dtype)}

    both = Phase(train=("model", "personal"), objective=side_by_side)
    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model"), "alpha": Personal()},
        slots={"alpha": start},
        schedule=(both, Assign(("alpha",), adapt, slope)) if adaptive_lr else (both,),
        predict=Predict(lambda x: interpolate(x.personal, x.model, x.alpha["alpha"]), visits=visits),
    )
