"""Ditto."""

from torch import Tensor

from plures.method import Batch, Method, Personal, Phase, Predict, Shared, State, squared_distance, task_loss
from plures.methods.entry import entry, remark, require


@entry("Ditto", "regularised", "Li, Hu, Beirami, Smith 2021, ICML, Algorithm 1", {"lam": (0.05, 0.1, 0.5, 1.0, 2.0)})
def ditto(lam: float = 1.0, visits: int = 5) -> Method:
    """Each client trains a personal model that stays near the global one, which is trained by plain FedAvg.

    Personal objective (equation 1): ``min f_i(v_i) + lam/2 ||v_i - w||^2``.

    Args:
        lam: pull towards the global model; 0 is local training.
        visits: visits an unseen client makes, starting from the global model.
    """
    require(lam >= 0, f"ditto: lam={lam} must not be negative")
    remark(lam == 0, "ditto with lam=0 predicts with local-only models")

    def near(x: State, received: State, batch: Batch) -> Tensor:
        return task_loss(x.personal, batch) + lam / 2 * squared_distance(x.personal, received.model)

    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model")},
        schedule=(Phase(train="personal", objective=near), Phase(train="model")),
        predict=Predict("personal", visits=visits),
    )
