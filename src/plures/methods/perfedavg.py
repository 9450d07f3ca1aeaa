"""Per-FedAvg: a model that is good after one step."""

from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    SGD,
    Batch,
    Combine,
    Leaves,
    Method,
    Phase,
    Predict,
    State,
    axpy,
    detach,
    dot,
    gradient,
    parameters,
)
from plures.methods.entry import entry, remark, require

Batches = tuple[Batch, Batch, Batch]


@entry(
    "Per-FedAvg", "meta-learning", "Fallah, Mokhtari, Ozdaglar 2020, NeurIPS, Algorithm 1", {"alpha": (0.01, 0.03, 0.1)}
)
def perfedavg(
    alpha: float = 0.01,
    variant: Literal["FO", "HF", "exact"] = "HF",
    delta: float = 1e-3,
    adapt_steps: int = 1,
) -> Method:
    """A global model from which one gradient step on a client's data gives a good personal model.

    ``min_w mean_i f_i(w - alpha grad f_i(w))``. Each step draws three batches D, D', D'': with
    ``g = grad f(w - alpha grad f(w; D); D')`` it follows ``(I - alpha H(w; D'')) g`` (exact), ``g`` (FO), or replaces
    the Hessian product by ``[grad f(w + delta g; D'') - grad f(w - delta g; D'')] / (2 delta)`` (HF). Averages are
    uniform. Prediction is after ``adapt_steps`` steps on training data.

    Args:
        alpha: learning rate of the adaptation.
        variant: exact meta-gradient, first-order (FO) or Hessian-free (HF).
        delta: step of the finite difference.
        adapt_steps: steps of the adaptation before predicting.
    """
    require(alpha >= 0 and delta > 0, f"perfedavg: alpha={alpha} must not be negative and delta={delta} positive")
    remark(alpha == 0, "perfedavg with alpha=0 is fedavg with uniform weights")

    def curvature(model: Leaves, g: Leaves, batch: Batch) -> Leaves:
        if variant == "HF":
            up, down = (gradient(axpy(model, sign * delta, g), batch) for sign in (1, -1))
            return {k: (up[k] - down[k]) / (2 * delta) for k in g}
        free = parameters(model)
        product: Leaves = torch.func.grad(lambda w: dot(gradient({**model, **w}, batch), detach(g)))(free)
        return product

    def meta_gradient(x: State, received: State, batch: Batches) -> dict[str, Leaves]:
        model = detach(x.model)
        g = gradient(axpy(model, -alpha, gradient(model, batch[0], keep=x.model)), batch[1])
        if variant != "FO":
            g = axpy(g, -alpha, curvature(model, g, batch[2]))
        return {"meta": g}

    def follow(x: State, received: State, batch: Batches) -> Tensor:
        return dot(x.model, x.meta)

    return Method(
        schedule=(Phase(objective=follow, before=meta_gradient, batches=3),),
        combine=Combine("uniform"),
        predict=Predict("model", adapt=(Phase(steps=adapt_steps, lr=alpha, optimizer=SGD(), stream="adapt"),)),
    )
