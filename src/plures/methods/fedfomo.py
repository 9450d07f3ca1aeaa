"""FedFomo, first-order model optimization."""

import torch

from plures.method import (
    Assign,
    Batch,
    Leaves,
    Method,
    Mixed,
    Personal,
    Phase,
    Predict,
    State,
    Visit,
    best_others,
    flatten,
    parameters,
    unflatten,
)
from plures.methods.entry import entry, remark, require


@entry(
    "FedFomo",
    "selection and mixing",
    "Zhang, Sapra, Fidler, Yeung, Alvarez 2021, ICLR, Algorithm 1",
    {"models": (2, 5)},
)
def fedfomo(models: int = 5, epsilon: float = 0.3, decay: float = 0.05, visits: int = 2) -> Method:
    """Each client moves towards the other clients' models that would lower its validation loss.

    The server keeps all models and sends each client some of the others'. From the model ``theta`` that its last
    visit trained from, a client moves by ``sum_j w_j (theta_j - theta)`` over that visit's result and the models sent;
    ``w_j`` is proportional to ``max(0, (L(theta) - L(theta_j)) / ||theta_j - theta||)`` (equation 4), ``L`` the loss on
    its validation split; if none is better it returns to ``theta``. Then it trains and uploads. It predicts with the
    combination and its own running statistics. Without validation examples it keeps its own model. It also explores
    when predicting: each model sent for that is a random one with the same probability as in a round.

    Args:
        models: M, number of other clients' models a client receives: those with the largest sum of ``w_j``, before
            clipping, so far.
        epsilon: probability that each of them is replaced by a random one.
        decay: decrease of ``epsilon`` in each round.
        visits: visits an unseen client makes, starting from the mean of the models.
    """
    require(models >= 0, f"fedfomo: models={models} must not be negative")
    require(0 <= epsilon <= 1 and decay >= 0, f"fedfomo: epsilon={epsilon} (in [0, 1]), decay={decay} (not negative)")
    remark(models == 0, "fedfomo with models=0 is local training that goes back where the validation loss rose")

    def pool(x: State) -> Leaves:
        last = {**x.model, **{k: x.previous[k] for k in parameters(x.model)}}
        return {k: torch.cat([last[k][None], t[None], x.others[k]]) for k, t in x.model.items()}

    def compare(x: State, received: State, batch: Batch) -> Leaves:
        count = len(x.whose["weights"]) + 2
        return {"losses": torch.stack([batch.loss({k: t[m] for k, t in pool(x).items()}) for m in range(count)])}

    def combine(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        losses, like = visit.measured["losses"], {k: t[None] for k, t in parameters(x.model).items()}
        models = flatten({k: t for k, t in pool(x).items() if k in like})
        far = (models - models[:1]).norm(dim=1)
        gains = torch.where(far > 0, (losses[0] - losses) / far.clamp(min=1e-30), 0.0).nan_to_num(0.0, 0.0, 0.0)
        useful, place = gains.clamp(min=0), torch.arange(len(gains), device=gains.device)
        otherwise = (place == torch.where(losses.any(), 0, 1)).to(gains)
        weights = torch.where(useful.sum() > 0, useful / useful.sum().clamp(min=1e-30), otherwise)
        mixed = (weights @ models.where(weights[:, None] > 0, 0.0))[None]
        model = {**x.model, **{k: t[0] for k, t in unflatten(mixed, like).items()}}
        known = x.affinity["affinity"] + gains[2:].to(losses) @ x.whose["weights"]
        return {"model": model, "previous": model, "affinity": {"affinity": known}}

    mix = Assign(("model", "previous", "affinity"), combine, compare, split="validation")
    return Method(
        layout={
            "model": Mixed(),
            "previous": Personal(unseen="model"),
            "affinity": Personal(),
            **best_others(
                "model",
                lambda look: look.states["affinity"]["affinity"],
                models,
                lambda round: epsilon - decay * round,
                reads=("affinity",),
            ),
        },
        slots={"affinity": lambda start: {"affinity": torch.zeros(len(start.setting), dtype=start.network.dtype)}},
        schedule=(mix, Phase()),
        predict=Predict("model", adapt=(mix,), visits=visits),
    )
