"""FedDyn, dynamic regularisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Cohort,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Shared,
    State,
    Visit,
    dot,
    squared_distance,
    task_loss,
    zeros,
)
from plures.methods.entry import entry, require


@dataclass(frozen=True)
class Corrected:
    """``h <- h - alpha |S|/n (mean - w)``, then ``w <- mean - h / alpha``; ``h`` is the mean of all clients' ``h_i``.

    Attributes:
        alpha: strength of the regularisation.
    """

    alpha: float

    def start(self, value: Leaves) -> Leaves:
        return {k: torch.zeros_like(t) for k, t in value.items()}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        h = {k: memory[k] - self.alpha * cohort.fraction * (combined[k] - old[k]) for k in old}
        return {k: combined[k] - h[k] / self.alpha for k in old}, {**memory, **h}


@entry(
    "FedDyn",
    "variance reduction",
    "Acar, Zhao, Matas, Mattina, Whatmough, Saligrama 2021, ICLR, Algorithm 1",
    {"alpha": (0.001, 0.01, 0.1)},
)
def feddyn(alpha: float = 0.01) -> Method:
    """One global model; clients and server remember gradients that make local and global optima agree.

    Local objective: ``f_i(x) - <h_i, x> + alpha/2 ||x - w||^2``; then ``h_i <- h_i - alpha (x - w)``, which is the
    gradient of ``f_i`` at ``x`` if the objective was minimised. The server keeps the mean of all ``h_i`` and takes
    ``w = mean x - h / alpha``, with uniform weights. A fixed point is the optimum of the uniform mean of the ``f_i``,
    whatever the number of local steps. One model is sent up and one down.

    Args:
        alpha: strength of the regularisation, with the factor 1/2.
    """
    require(alpha > 0, f"feddyn: alpha={alpha} must be positive")

    def dynamic(x: State, received: State, batch: Batch) -> Tensor:
        near = alpha / 2 * squared_distance(x.model, received.model)
        return task_loss(x.model, batch) - dot(x.model, received.slope) + near

    def remember(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"slope": {k: h - alpha * (x.model[k] - received.model[k]) for k, h in received.slope.items()}}

    return Method(
        layout={"model": Shared(), "slope": Personal()},
        slots={"slope": zeros},
        schedule=(Phase(objective=dynamic), Assign(("slope",), remember)),
        combine=Combine("uniform", Corrected(alpha)),
    )
