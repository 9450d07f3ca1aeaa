"""MOON, model-contrastive federated learning."""

from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Shared, State, Visit
from plures.method.representation import contrast, remembered, unvisited, visited
from plures.methods.entry import entry, remark, require


@entry("MOON", "representation", "Li, He, Song 2021, CVPR, Algorithm 1", {"mu": (0.1, 1.0, 5.0, 10.0)})
def moon(mu: float = 1.0, temperature: float = 0.5) -> Method:
    """FedAvg whose clients keep their representations near the global model's and away from their own previous model's.

    Local objective (equation 4): ``f_i(x) + mu * mean -log(e^(s_g/t) / (e^(s_g/t) + e^(s_p/t)))`` with the cosines
    ``s_g`` and ``s_p`` between the head's input in the trained model and in the received or the previous one. As in
    the authors' networks, a projection is the last layer before the head. On a first visit both are the received
    model: the term is ``log 2`` and has no gradient.

    Args:
        mu: strength of the contrastive term; 0 is FedAvg.
        temperature: t.
    """
    require(mu >= 0 and temperature > 0, f"moon: mu={mu} must not be negative and temperature={temperature} positive")
    remark(mu == 0, "moon with mu=0 is fedavg")

    def apart(x: State, received: State, batch: Batch) -> Tensor:
        outputs, own = batch.represented(x.model)
        near, far = batch.features(received.model), batch.features(x.previous)
        term = contrast(own.flatten(1), near.flatten(1), far.flatten(1), temperature)
        return batch.problem.loss(outputs, batch.targets, batch.weight) + mu * batch.mean(term)

    def recall(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"previous": remembered(x.visited, x.previous, received.model)}

    def remember(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"previous": x.model, "visited": visited(x.visited)}

    return Method(
        layout={"model": Shared(), "previous": Personal(), "visited": Personal()},
        slots={"visited": unvisited},
        schedule=(
            Assign(("previous",), recall),
            Phase(objective=apart),
            Assign(("previous", "visited"), remember),
        ),
    )
