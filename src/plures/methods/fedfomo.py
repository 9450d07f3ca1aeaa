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
    """Each client moves towards those models of the others that would lower its validation loss.

    The server keeps everybody's model and sends some of the others'. From the model ``theta`` that its last visit
    trained, a client moves by ``sum_j w_j (theta_j - theta)`` over what the visit made of it and what it was sent, with
    ``w_j`` proportional to ``max(0, (L(theta) - L(theta_j)) / ||theta_j - theta||)`` (equation 4) and ``L`` the loss on
    its validation split; where nothing is better it goes back to ``theta``. Then it trains and uploads. It predicts
    with the combination and its own running statistics. Without validation examples it keeps its own model. It explores
    while predicting, too: of the models that it is sent for that, each is a random one with the chance of a round.

    Args:
        models: M, how many of the others' models a client receives: those with the largest sum of ``w_j``, before
            clipping, so far.
        epsilon: chance of each of them to be a random one instead.
        decay: by how much ``epsilon`` falls in each round.
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
