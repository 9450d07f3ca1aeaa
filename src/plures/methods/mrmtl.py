"""MR-MTL, mean-regularised multi-task learning."""

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
    Shared,
    State,
    Visit,
    squared_distance,
    task_loss,
)
from plures.methods.entry import entry, remark, require


@entry(
    "MR-MTL",
    "regularised",
    "Evgeniou, Pontil 2004, KDD; in federations Liu, Hu, Wu, Smith 2022, NeurIPS",
    {"lam": (0.05, 0.1, 0.5, 1.0, 2.0)},
)
def mrmtl(lam: float = 1.0, visits: int = 5) -> Method:
    """Personal models near their own mean: Ditto without a separately trained global model.

    ``min sum_i f_i(v_i) + lam/2 sum_i ||v_i - mean_j v_j||^2``. Each client trains ``f_i(v) + lam/2 ||v - w||^2``
    against the mean ``w`` that it received, and sends ``v``; the server takes the uniform mean over the cohort.
    A fixed point is the optimum of the joint objective, whatever the number of local steps. One model is sent up and
    one down.

    Args:
        lam: pull towards the mean, with the factor 1/2; 0 is local training.
        visits: visits an unseen client makes, starting from the mean.
    """
    require(lam >= 0, f"mrmtl: lam={lam} must not be negative")
    remark(lam == 0, "mrmtl with lam=0 predicts with local-only models")

    def near(x: State, received: State, batch: Batch) -> Tensor:
        return task_loss(x.personal, batch) + lam / 2 * squared_distance(x.personal, received.model)

    def send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"model": x.personal}

    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model")},
        schedule=(Phase(train="personal", objective=near), Assign(("model",), send)),
        combine=Combine("uniform"),
        predict=Predict("personal", visits=visits),
    )
