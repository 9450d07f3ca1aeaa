"""EEFed: an execution and an evaluation network."""

from typing import Literal

import torch

from plures.method import Assign, Leaves, Method, Personal, Phase, Predict, Shared, State, Visit, interpolate
from plures.methods.entry import entry, require


@entry(
    "EEFed",
    "after training",
    "Huang et al. 2022, IEEE TIFS (from its abstract)",
)
def eefed(accept: Literal["better", "always", "never"] = "better", grid: int = 4, visits: int = 5) -> Method:
    """Each client deploys an execution model and replaces it only by one that is better on its validation examples.

    The evaluation model (``model``) is what the server averages. At a visit the execution model becomes the best, by
    validation loss, of itself, the received evaluation model and ``grid - 1`` interpolations between them. It is
    trained and sent, and the result is kept only if training improved it; so its validation loss never rises. Before
    predicting, the first choice is repeated on a copy, so the deployed model is never worse. Only the paper's abstract
    was available (dual network, personalized update, backtracking replacement of parameters); these rules are our
    interpretation. A client without validation examples takes the aggregate and trains it.
    An interpolation has the running statistics of the execution model.

    Args:
        accept: ``better``; ``always`` take the aggregate (FedAvg); or ``never`` (local training).
        grid: number of equal intervals between the two models; 1 for the two models alone.
        visits: visits an unseen client makes, starting from the evaluation model.
    """
    require(grid >= 1, f"eefed: grid={grid} must be at least 1")

    def cost(leaves: Leaves, visit: Visit, merit: float) -> torch.Tensor:
        batch = visit.examples["validation"]
        loss = batch.loss(leaves).nan_to_num(nan=torch.inf)
        return torch.where(batch.mask.sum() > 0, loss, -merit)

    def best(old: State, visit: Visit) -> Leaves:
        if accept != "better":
            return old.model if accept == "always" else old.execution
        steps = [1 - k / grid for k in range(grid + 1)]
        costs = torch.stack([cost(interpolate(old.execution, old.model, s), visit, 1 - s) for s in steps])
        return interpolate(old.execution, old.model, costs.new_tensor(steps)[costs.argmin()])

    def take(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"execution": best(received, visit)}

    def settle(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        trained, start = x.execution, best(received, visit)
        better = cost(trained, visit, 2.0) < cost(start, visit, 1.0)
        kept = {k: torch.where(better | (accept != "better"), t, start[k]) for k, t in trained.items()}
        return {"model": trained, "execution": kept}

    choose = Assign(("execution",), take, reads=("validation",))
    return Method(
        layout={"model": Shared(), "execution": Personal(unseen="model")},
        schedule=(
            choose,
            Phase(train="execution"),
            Assign(("model", "execution"), settle, reads=("validation",)),
        ),
        predict=Predict("execution", adapt=(choose,), visits=visits),
    )
