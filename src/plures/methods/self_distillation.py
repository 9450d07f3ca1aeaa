"""pFedSD, personalization by self-knowledge distillation."""

from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Predict, Shared, Start, State, Visit
from plures.method.needs import classes
from plures.method.representation import distillation, remembered, unvisited, visited
from plures.methods.entry import entry, remark, require


@entry(
    "pFedSD",
    "representation",
    "Jin, Bai, Yao, Dai, Gu, Yu, Sun 2023, IEEE Trans. Parallel and Distributed Systems 34(2)",
    {"lam": (0.1, 0.5, 1.0, 2.0)},
)
def self_distillation(lam: float = 1.0, temperature: float = 2.0, visits: int = 5) -> Method:
    """FedAvg whose clients distil from their own model of the last visit, and predict with their own model.

    From the received model, each client minimises ``f_i(x) + lam t^2 KL(softmax(z_own/t) || softmax(z_x/t))``, where
    ``z_own`` are the scores of its own model of the previous visit; without one the second term is left out. The result
    is sent, is the client's predictor, and is its next teacher. A client that was never visited predicts with the
    global model.

    Args:
        lam: strength of the distillation; 0 is FedAvg with the clients' own models as predictors.
        temperature: t.
        visits: visits an unseen client makes; each starts from the global model.
    """
    require(lam >= 0 and temperature > 0, f"self_distillation: lam={lam} must be >= 0, temperature={temperature} > 0")
    remark(lam == 0, "self_distillation with lam=0 is fedavg, evaluated before averaging")

    def flag(start: Start) -> Leaves:
        classes(start, "self_distillation")
        return unvisited(start)

    def begin(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"own": received.model}

    def taught(x: State, received: State, batch: Batch) -> Tensor:
        outputs = batch.outputs(x.own)
        lesson = batch.mean(distillation(batch.outputs(received.own), outputs, temperature))
        return batch.problem.loss(outputs, batch.targets, batch.weight) + lam * received.visited["visited"] * lesson

    def send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"model": x.own, "visited": visited(x.visited)}

    return Method(
        layout={"model": Shared(), "own": Personal(), "visited": Personal()},
        slots={"visited": flag},
        schedule=(
            Assign(("own",), begin),
            Phase("own", objective=taught),
            Assign(("model", "visited"), send),
        ),
        predict=Predict(lambda x: remembered(x.visited, x.own, x.model), visits=visits),
    )
