"""FedProx."""

from torch import Tensor

from plures.method import Batch, Method, Phase, State, squared_distance, task_loss
from plures.methods.entry import entry, remark, require


@entry(
    "FedProx",
    "regularised",
    "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, MLSys, Algorithm 2",
    {"mu": (0.001, 0.01, 0.1, 1.0)},
)
def fedprox(mu: float = 0.01) -> Method:
    """FedAvg with a proximal term that keeps clients near the model they received.

    Local objective (equation 2): ``f_i(x) + mu/2 ||x - w||^2``.

    Args:
        mu: strength of the proximal term, in the paper's convention (with the factor 1/2).
    """
    require(mu >= 0, f"fedprox: mu={mu} must not be negative")
    remark(mu == 0, "fedprox with mu=0 is fedavg")

    def near(x: State, received: State, batch: Batch) -> Tensor:
        return task_loss(x.model, batch) + mu / 2 * squared_distance(x.model, received.model)

    return Method(schedule=(Phase(objective=near),))
