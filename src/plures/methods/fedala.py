"""FedALA, adaptive local aggregation."""

import torch

from plures.method import (
    Assign,
    Batch,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Selector,
    Shared,
    Start,
    State,
    Visit,
    gradient,
    parameters,
)
from plures.methods.entry import entry, part, remark, require


@entry(
    "FedALA",
    "selection and mixing",
    "Zhang, Hua, Wang, Song, Xue, Ma, Guan 2023, AAAI, Algorithm 1",
    {"weight_lr": (0.1, 1.0, 10.0)},
)
def fedala(layers: str | Selector = "head", weight_lr: float = 1.0, epochs: float = 0.8) -> Method:
    """Before training, each client learns, entry by entry, how much of the global model to adopt.

    In the chosen (upper) layers ``theta = v + (w - v) * W`` with ``v`` the client's last model, ``w`` the global one
    and ``W`` in [0, 1], which starts at 1 and stays with the client: ``W`` follows the gradient of the loss at
    ``theta``, ``W <- clip(W - weight_lr (w - v) * grad f(theta))``. The other layers are the global ones. Then the
    client trains ``theta`` and uploads it. It predicts with the ``theta`` from which it would train now. The paper
    trains ``W`` to convergence at its first use; here the work is the same in every visit. An unseen client uses the
    global model. Running statistics are the global model's.

    Args:
        layers: for which layers weights are learned: a role (``head``, ``body``) or a selector.
        weight_lr: eta, learning rate of the weights; 0 is FedAvg.
        epochs: passes over the training data for the weights; a fraction is the paper's s, a random share of them.
    """
    chosen = part(layers)
    require(weight_lr >= 0 and epochs > 0, f"fedala: weight_lr={weight_lr} (not negative), epochs={epochs} (positive)")
    remark(weight_lr == 0, "fedala with weight_lr=0 is fedavg")

    def merged(x: State) -> Leaves:
        return x.model | {k: w * x.model[k] + (1 - w) * x.last[k] for k, w in x.weight.items()}

    def learn(x: State, received: State, batch: Batch) -> dict[str, Leaves]:
        slope = gradient(merged(x), batch)
        steps = {k: weight_lr * (x.model[k] - x.last[k]) * slope[k] for k in x.weight}
        return {"weight": {k: (w - steps[k]).clamp(0.0, 1.0) for k, w in x.weight.items()}}

    def aggregate(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"model": merged(x)}

    def remember(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"last": {k: x.model[k] for k in x.last}}

    def ones(start: Start) -> Leaves:
        own = {k for k, info in start.network.info.items() if chosen.chooses(info)}
        return {k: torch.ones_like(t) for k, t in parameters(start.model).items() if k in own}

    return Method(
        layout={"model": Shared(), "last": Personal(unseen="model"), "weight": Personal()},
        slots={"last": chosen, "weight": ones},
        schedule=(
            Phase(train=(), before=learn, keeps=("weight",), epochs=epochs, stream="weights"),
            Assign(("model",), aggregate),
            Phase(),
            Assign(("last",), remember),
        ),
        predict=Predict(merged),
    )
