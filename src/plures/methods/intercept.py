"""FedAvg with one personal intercept: the least that personalization can be."""

import torch
from torch import Tensor

from plures.method import Batch, Calibration, Leaves, Method, Personal, Predict, Shared, Start, State
from plures.methods.entry import entry, require
from plures.tasks.shift import best_shift


@entry(
    "FedAvg + intercept",
    "baseline",
    "logistic recalibration in the large: Cox 1958, Biometrika 45",
    after="fedavg",
)
def intercept(prior: float = 1.0) -> Method:
    """FedAvg; each client adds one number per output of its own, fitted on its training examples.

    ``min_b sum_n l(z_n + b, y_n) + prior/2 ||b||^2`` over the outputs ``z`` of the finished model.
    It moves decisions and probabilities towards the client's share of each class, or its mean, and of two classes
    it never changes the order of the scores. So what it gains in accuracy says how much of personalization is
    knowledge of how frequent the classes are. A model that diverged stays as it is.

    Args:
        prior: weight of the penalty, in examples.
    """
    require(prior >= 0, f"intercept: prior={prior} must not be negative")

    def fit(x: State, outputs: Tensor, batch: Batch) -> Leaves:
        task, given, weight = batch.problem.task, outputs.to(torch.float64), batch.mask.to(torch.float64)
        targets = batch.targets.to(torch.float64) if batch.targets.is_floating_point() else batch.targets
        total, mean = weight.sum(), task.shifted(given, targets, weight)

        def cost(shift: Tensor) -> Tensor:
            return total * mean(shift) + prior / 2 * shift.square().sum()

        found = best_shift(cost, given.new_zeros(task.outputs), task.smooth)
        return {"shift": found.view(task.shift).to(outputs)}

    def start(start: Start) -> Leaves:
        return {"shift": torch.zeros(start.setting.task.shift, dtype=start.network.dtype)}

    def revise(x: State, outputs: Tensor) -> Tensor:
        return outputs + x.intercept["shift"]

    return Method(
        layout={"model": Shared(), "intercept": Personal()},
        slots={"intercept": start},
        predict=Predict(calibrate=(Calibration("intercept", fit, revise, split="train"),)),
    )
