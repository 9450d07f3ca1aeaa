"""Federated averaging, the global-only baseline."""

from typing import Literal

from plures.method import Combine, Method, Relax
from plures.methods.entry import entry


@entry(
    "FedAvg",
    "baseline",
    "McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, AISTATS, Algorithm 1",
)
def fedavg(weights: Literal["examples", "uniform"] = "examples", server_lr: float = 1.0) -> Method:
    """One global model: each client trains a copy on its data and the server averages the results.

    Objective: ``min_w sum_i p_i f_i(w)`` with ``p_i`` proportional to the number of examples.

    Args:
        weights: weights of the clients in the average.
        server_lr: step towards the average; 1 replaces the model by the average.
    """
    return Method(combine=Combine(weights, Relax(server_lr)))
