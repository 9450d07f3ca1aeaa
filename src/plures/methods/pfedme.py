"""pFedMe."""

from torch import Tensor

from plures.method import (
    Batch,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Relax,
    Shared,
    State,
    axpy,
    detach,
    gradient,
    squared_distance,
)
from plures.methods.entry import entry, remark, require


@entry("pFedMe", "regularised", "Dinh, Tran, Nguyen 2020, NeurIPS, Algorithm 1", {"lam": (1.0, 5.0, 15.0)})
def pfedme(
    lam: float = 15.0,
    inner_steps: int = 5,
    inner_lr: float = 0.05,
    lr: float | None = None,
    beta: float = 1.0,
    visits: int = 5,
) -> Method:
    """Personal models are proximal points of the global one, which follows the Moreau envelopes of the clients.

    ``F_i(w) = min_theta f_i(theta) + lam/2 ||theta - w||^2``; each step solves for ``theta`` on a fresh batch by
    ``inner_steps`` gradient steps from the previous ``theta`` and moves ``w`` by ``lr lam (w - theta)``. The server
    moves ``beta`` of the way to the uniform mean of the clients' ``w``. Prediction is by ``theta``. Running statistics
    of ``theta`` and of ``w`` follow a forward pass of each on every batch.
    A visit starts from the ``theta`` that the client's last visit left, however far ``w`` has moved since: after a long
    absence a few inner steps may not reach the proximal point.

    Args:
        lam: strength of the proximal term.
        inner_steps: K, gradient steps for the proximal point.
        inner_lr: their learning rate; ``inner_lr * lam`` below 1 keeps them stable.
        lr: eta, learning rate of the envelope step; default: the run's. One step goes ``lr lam`` of the way from ``w``
            to ``theta``: keep the product below 1; above 1 it overshoots ``theta``, and above 2 it diverges.
        beta: server step; 0 would freeze the global model.
        visits: visits an unseen client makes to compute its proximal point.
    """
    require(lam >= 0 and inner_steps >= 1 and inner_lr > 0, f"pfedme: lam={lam}, K={inner_steps}, inner_lr={inner_lr}")
    remark(beta == 0, "pfedme with beta=0 never changes the global model")

    def proximal_point(x: State, received: State, batch: Batch) -> dict[str, Leaves]:
        anchor, theta = detach(x.model), detach(x.personal)
        batch.see(x.model)
        for _ in range(inner_steps):
            slope = gradient(theta, batch, keep=x.personal)
            theta = axpy(theta, -inner_lr, axpy(slope, lam, axpy(theta, -1.0, anchor)))
        return {"personal": theta}

    def envelope(x: State, received: State, batch: Batch) -> Tensor:
        return lam / 2 * squared_distance(x.model, x.personal)

    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model")},
        schedule=(
            Phase(
                train="model",
                objective=envelope,
                before=proximal_point,
                keeps=("personal",),
                lr=lr,
            ),
        ),
        combine=Combine("uniform", Relax(beta)),
        predict=Predict("personal", visits=visits),
    )
