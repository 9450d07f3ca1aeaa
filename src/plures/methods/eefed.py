"""EEFed: an execution and an evaluation network."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Predict, Shared, State, Visit, interpolate
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

    steps = [1 - k / grid for k in range(grid + 1)]

    def tried(x: State, received: State, batch: Batch) -> Tensor:
        models = (*(interpolate(received.execution, received.model, s) for s in steps), x.execution)
        return torch.stack([batch.outputs(leaves) for leaves in models], 1)

    def costs(visit: Visit) -> Tensor:
        """Validation losses of the interpolations, and of the execution model; without examples, in that order."""
        batch = visit.examples["validation"]
        losses = [batch.problem.loss(o, batch.targets, batch.weight) for o in batch.input.unbind(1)]
        order = batch.mask.new_tensor([-(1 - s) for s in steps] + [-2.0])
        return torch.where(batch.mask.sum() > 0, torch.stack(losses).nan_to_num(nan=torch.inf).to(order), order)

    def best(old: State, visit: Visit) -> Leaves:
        if accept != "better":
            return old.model if accept == "always" else old.execution
        found = costs(visit)[:-1]
        return interpolate(old.execution, old.model, found.new_tensor(steps)[found.argmin()])

    def take(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"execution": best(received, visit)}

    def settle(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        trained, start = x.execution, best(received, visit)
        if accept != "better":
            return {"model": trained, "execution": trained}
        found = costs(visit)
        better = found[-1] < found[:-1].min()
        return {"model": trained, "execution": {k: torch.where(better, t, start[k]) for k, t in trained.items()}}

    def assign(writes: tuple[str, ...], update: Callable[[State, State, Visit], dict[str, Leaves]]) -> Assign:
        if accept != "better":
            return Assign(writes, update)
        return Assign(writes, update, reads=("validation",), through=tried)

    choose = assign(("execution",), take)
    return Method(
        layout={"model": Shared(), "execution": Personal(unseen="model")},
        schedule=(
            choose,
            Phase(train="execution"),
            assign(("model", "execution"), settle),
        ),
        predict=Predict("execution", adapt=(choose,), visits=visits),
    )
