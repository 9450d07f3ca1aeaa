"""FedAMP, federated attentive message passing."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.method import Batch, Look, Method, Mixed, Phase, Predict, State, View, squared_distance, task_loss
from plures.methods.entry import entry, remark, require


@entry(
    "FedAMP",
    "selection and mixing",
    "Huang, Chu, Zhou, Wang, Liu, Pei, Zhang 2021, AAAI, Algorithm 1",
    {"sigma": (1.0, 10.0, 100.0)},
)
def fedamp(
    lam: float = 1.0,
    alpha: float = 1.0,
    sigma: float = 1.0,
    attention: Literal["distance", "cosine"] = "distance",
    self_weight: float = 0.5,
    visits: int = 5,
) -> Method:
    """Each client stays near a mixture of all models in which models similar to its own weigh more.

    ``min sum_i f_i(w_i) + lam sum_(i<j) A(||w_i - w_j||^2)`` with ``A(d) = 1 - exp(-d / sigma)``. The server computes
    ``u_i = (1 - sum_j a_ij) w_i + sum_j a_ij w_j`` with ``a_ij = alpha A'(||w_i - w_j||^2)`` over the others' last
    models; if the ``a_ij`` sum to more than 1, they are scaled to sum to 1. The client minimises
    ``f_i(w) + lam / (2 alpha) ||w - u_i||^2`` from its own model. HeurFedAMP (section "Heuristic improvement") takes
    ``a_ij`` proportional to ``exp(sigma cos(w_i, w_j))`` with a fixed weight for the client's own model.

    Args:
        lam: strength of the attraction; 0 is local training.
        alpha: step of the server.
        sigma: scale of the squared distances within which models attract; for ``cosine``, sharpness of the attention.
        attention: by distance (FedAMP) or by cosine (HeurFedAMP).
        self_weight: weight of the client's own model with ``cosine``.
        visits: visits an unseen client makes, starting from the mean of the models.
    """
    require(
        lam >= 0 and alpha > 0 and sigma > 0, f"fedamp: lam={lam} (not negative), alpha={alpha}, sigma={sigma} (> 0)"
    )
    require(0 <= self_weight <= 1, f"fedamp: self_weight={self_weight} must lie in [0, 1]")
    remark(lam == 0, "fedamp with lam=0 is local training")

    def attend(look: Look) -> Tensor:
        mine, models = look.own_models("model"), look.models
        own = look.own.to(models.device)
        if attention == "cosine":
            pull = sigma * F.normalize(mine) @ F.normalize(models).T
            total = torch.full((len(mine), 1), 1 - self_weight).to(models)
        else:
            pull = -torch.cdist(mine, models, compute_mode="donot_use_mm_for_euclid_dist").square() / sigma
            total = (alpha / sigma * pull.masked_fill(own, -torch.inf).exp().sum(1, keepdim=True)).clamp(max=1.0)
        among = pull.masked_fill(own, -torch.inf).softmax(1).nan_to_num(0.0)
        others = torch.where(own.any(1, keepdim=True), total, 1.0) * among
        return others + own * (1 - others.sum(1, keepdim=True))

    def near(x: State, received: State, batch: Batch) -> Tensor:
        return task_loss(x.model, batch) + lam / (2 * alpha) * squared_distance(x.model, received.cloud)

    return Method(
        layout={"model": Mixed(), "cloud": View("model", attend)},
        schedule=(Phase(objective=near),),
        predict=Predict("model", visits=visits),
    )
