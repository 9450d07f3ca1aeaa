"""kNN-Per, personalization through local memorization."""

import torch
from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Predict, Shared, Start, State, Visit
from plures.method.needs import averaging, mixing
from plures.methods.entry import entry, remark, require


@entry("kNN-Per", "selection and mixing", "Marfoq, Neglia, Kameni, Vidal 2022, ICML, section 4", {"k": (5, 10, 20)})
def knnper(k: int = 10, lam: float | None = None, scale: float = 1.0) -> Method:
    """A global model whose predictions each client mixes with those of its own nearest examples in feature space.

    ``p(y | x) = lam p_knn(y | x) + (1 - lam) p_model(y | x)``: the global model is trained by FedAvg, and its features
    ``phi`` (the head's input) of the client's training examples are the memory. The ``k`` nearest ones vote with
    weights proportional to ``exp(-||phi(x) - phi(x_j)|| / scale)``, times the weights of the examples where they have
    some; numbers are averaged likewise. A client without training examples uses the model alone.

    Args:
        k: number of neighbours.
        lam: weight of the neighbours; by default each client takes the value in 0, 0.1, ..., 1 with the lowest loss on
            its validation split, and 0 without validation examples.
        scale: distance at which a neighbour's vote has fallen to 1/e.
    """
    require(k >= 1 and scale > 0, f"knnper: k={k} must be at least 1 and scale={scale} positive")
    require(lam is None or 0 <= lam <= 1, f"knnper: lam={lam} must lie in [0, 1]")
    remark(lam == 0, "knnper with lam=0 is fedavg")

    def votes(x: State, batch: Batch, memory: Batch) -> Tensor:
        query, keys = (some.features(x.model).flatten(1) for some in (batch, memory))
        far = torch.cdist(query, keys, compute_mode="donot_use_mm_for_euclid_dist")
        if memory.weight is not None:
            far = far.masked_fill(memory.weight == 0, torch.inf)
        nearest = far.topk(min(k, len(keys)), largest=False)
        values = batch.problem.task.certain(memory.targets[nearest.indices]).to(far)
        near = -nearest.values / scale + memory.mask[nearest.indices].log()
        chance = near.softmax(1).nan_to_num(0.0)
        return (chance.view(*chance.shape, *(1,) * (values.dim() - 2)) * values).sum(1)

    def mixed(outputs: Tensor, near: Tensor, weight: Tensor, batch: Batch) -> Tensor:
        task = batch.problem.task
        return task.mix([task.scores(near), outputs], torch.stack([weight, 1 - weight]))

    def outputs(x: State, batch: Batch) -> Tensor:
        memory = batch.own["train"]
        known = memory.weight.any() if memory.weight is not None else True
        return mixed(batch.outputs(x.model), votes(x, batch, memory), x.mix["lam"] * known, batch)

    def choose(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        batch = visit.examples["validation"]
        plain, near = batch.outputs(x.model), votes(x, batch, visit.examples["train"])
        grid = torch.linspace(0, 1, 11, dtype=torch.float64).to(plain)
        losses = [batch.problem.loss(mixed(plain, near, g, batch), batch.targets, batch.weight) for g in grid]
        return {"mix": {"lam": grid[torch.stack(losses).nan_to_num().argmin(0)]}}

    def weights(start: Start) -> Leaves:
        mixing(start, "knnper")
        averaging(start, "knnper")
        return {"lam": torch.tensor(lam or 0.0, dtype=start.network.dtype)}

    return Method(
        layout={"model": Shared(), "mix": Personal()},
        slots={"mix": weights},
        predict=Predict(
            adapt=(Assign(("mix",), choose, reads=("train", "validation")),) if lam is None else (),
            outputs=outputs,
            reads=("train",),
        ),
    )
