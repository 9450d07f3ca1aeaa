"""WiSE-FT: between the global and the fine-tuned model."""

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
    interpolate,
)
from plures.method.needs import mixing
from plures.methods.entry import entry, require

GRID = tuple(k / 10 for k in range(11))


@entry(
    "WiSE-FT",
    "after training",
    "Wortsman, Ilharco, Kim et al. 2022, CVPR, section 3",
    {"epochs": (1, 3, 5)},
    {"steps": "epochs"},
)
def wise_ft(
    mix: Literal["parameters", "outputs"] = "parameters",
    alpha: float | None = None,
    epochs: float = 3,
    steps: int | None = None,
    lr: float | None = None,
) -> Method:
    """FedAvg; each client interpolates between the global model and its own fine-tuned copy of it.

    ``(1 - alpha) w + alpha FT_i(w)``, of the parameters (weight-space ensemble) or of the predicted probabilities
    (output-space ensemble; in regression, of the predicted numbers). Each client takes the ``alpha`` in 0, 0.1,
    ..., 1 with the lowest validation loss, the smallest on ties; without validation examples it keeps the global
    model.

    Args:
        mix: what is interpolated.
        alpha: the same weight for all clients instead; 0 is FedAvg, 1 FedAvg with fine-tuning.
        epochs: passes of fine-tuning over the client's training data.
        steps: gradient steps instead of epochs.
        lr: learning rate of the fine-tuning; default: the run's.
    """
    require(alpha is None or 0 <= alpha <= 1, f"wise_ft: alpha={alpha} must lie in [0, 1]")
    require(epochs >= 0 and (steps or 0) >= 0, f"wise_ft: epochs={epochs}, steps={steps} must not be negative")

    def between(x: State, batch: Batch, weight: Tensor) -> Tensor:
        if mix == "parameters":
            return batch.outputs(interpolate(x.tuned, x.model, weight))
        tuned, common = batch.outputs(x.tuned), batch.outputs(x.model)
        return batch.problem.task.mix([tuned, common], torch.stack([weight, 1 - weight]))

    def tried(x: State, received: State, batch: Batch) -> Tensor:
        return torch.stack([between(x, batch, weight) for weight in x.alpha["alpha"].new_tensor(GRID)], 1)

    def choose(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        batch, grid = visit.examples["validation"], x.alpha["alpha"].new_tensor(GRID)
        losses = torch.stack([batch.problem.loss(o, batch.targets, batch.weight) for o in batch.input.unbind(1)])
        return {"alpha": {"alpha": grid[losses.nan_to_num(nan=torch.inf).argmin()]}}

    def weight(start: Start) -> Leaves:
        if mix == "outputs":
            mixing(start, "wise_ft")
        return {"alpha": torch.tensor(alpha or 0.0, dtype=start.network.dtype)}

    copy = Assign(("tuned",), lambda x, received, visit: {"tuned": x.model})
    tune = Phase("tuned", epochs=epochs if steps is None else None, steps=steps, lr=lr, stream="adapt")
    chosen = (Assign(("alpha",), choose, reads=("validation",), through=tried),) if alpha is None else ()
    return Method(
        layout={"model": Shared(), "tuned": Personal(), "alpha": Personal()},
        slots={"alpha": weight},
        predict=Predict(
            lambda x: interpolate(x.tuned, x.model, x.alpha["alpha"]),
            adapt=(copy, tune, *chosen),
            outputs=(lambda x, batch: between(x, batch, x.alpha["alpha"])) if mix == "outputs" else None,
        ),
    )
