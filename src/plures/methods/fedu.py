"""FedU, a graph over the clients."""

from typing import Literal

import torch
from torch import Tensor

from plures.method import Cohort, Method, Mixed, Nearest, Predict, Setting
from plures.methods.entry import entry, remark, require

Graph = Literal["complete", "same", "nearest"]


def linked(graph: Graph | Tensor, columns: tuple[str, ...], neighbours: int, setting: Setting) -> Tensor:
    """Weights ``a`` of the edges between clients, ``(clients, clients)``: symmetric, without self-loops.

    In a named graph each edge weighs ``1 / (1 + largest number of neighbours)``, so that a step with ``strength=1`` in
    a complete graph gives every client the mean.
    """
    count = len(setting)
    if isinstance(graph, Tensor):
        require(len(graph) == count, f"fedu: the graph has {len(graph)} clients, the federation {count}")
        return graph.to("cpu", torch.float64)
    if graph == "complete":
        near = torch.ones(count, count, dtype=torch.bool)
    else:
        near = Nearest(columns, 1 if graph == "same" else neighbours + 1)(setting, setting) > 0
    edges = (near | near.T).to(torch.float64).fill_diagonal_(0.0)
    return edges / (1 + edges.sum(1).max())


@entry(
    "FedU",
    "regularised",
    "Dinh, Vu, Tran, Dao, Zhang 2021, arXiv:2102.07148, Algorithm 1",
    {"strength": (0.1, 0.3, 0.6, 0.9)},
)
def fedu(
    strength: float = 0.3,
    graph: Graph | Tensor = "complete",
    columns: tuple[str, ...] = (),
    neighbours: int = 3,
    visits: int = 5,
) -> Method:
    """Each client has its own model; after local steps, the server pulls neighbours in a graph together.

    ``min sum_i f_i(x_i) + lam/2 sum_(i<j) a_ij ||x_i - x_j||^2``, each pair once (the paper sums over ordered pairs,
    so its constant is half of this one). The server's step is ``X <- (I - strength L) X`` with the graph's Laplacian
    ``L``. In the paper's terms ``strength = eta K lam``, with the learning rate ``eta`` and ``K`` local steps, which
    the server does not know; a rate that falls over the rounds raises ``lam``. A neighbour that did not take part
    counts with its last model. One model is sent up and one down.

    Args:
        strength: of the server's step; 0 is local training. At most 1 over the largest sum of a client's edges.
        graph: ``complete``; ``same``, clients that agree in metadata columns; ``nearest``, each client and those with
            the nearest metadata; or weights ``(clients, clients)``, symmetric and not negative.
        columns: metadata columns of ``same`` and ``nearest``; empty for all.
        neighbours: number of ``nearest`` clients.
        visits: visits an unseen client makes, starting from the mean of its neighbours' models.
    """
    given = isinstance(graph, Tensor)
    require(strength >= 0 and neighbours >= 1, f"fedu: strength={strength} must be >= 0, neighbours={neighbours} >= 1")
    remark(strength == 0, "fedu with strength=0 is local training")
    if isinstance(graph, Tensor):
        symmetric = graph.dim() == 2 and graph.shape[0] == graph.shape[1] and bool((graph == graph.T).all())
        require(symmetric and bool((graph >= 0).all()), "fedu: edge weights must be a symmetric matrix of numbers >= 0")

    def mix(models: Tensor, cohort: Cohort) -> Tensor:
        edges = linked(graph, columns, neighbours, cohort.setting).fill_diagonal_(0.0)
        degree = edges.sum(1)
        pull = strength * float(degree.max())
        require(pull <= 1 + 1e-9, f"fedu: strength times the largest sum of a client's edges is {pull:.3g}, above 1")
        return torch.eye(len(edges), dtype=torch.float64) - strength * (degree.diag() - edges)

    named = None if given or graph == "complete" else Nearest(columns, 1 if graph == "same" else neighbours)
    return Method(layout={"model": Mixed(mix, unseen=named)}, predict=Predict("model", visits=visits))
