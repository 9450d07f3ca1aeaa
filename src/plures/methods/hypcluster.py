"""HypCluster, hypothesis-based clustering."""

from plures.method import Clustered, Method, Phase
from plures.methods.entry import entry, remark, require


@entry("HypCluster", "clustered", "Mansour, Mohri, Ro, Suresh 2020, arXiv:2002.10619", {"clusters": (2, 3, 4)})
def hypcluster(clusters: int = 3, epochs: float | None = 5) -> Method:
    """Several models; every client takes the one with the lowest loss on its data and trains it for several epochs.

    ``min_{h_1..h_k} sum_i n_i min_j f_i(h_j)``, by alternating choice and training; each model is the mean of its
    clients' results, weighted by examples. It differs from IFCA in its long local phases and these weights. An unseen
    client chooses on its own labelled training data.

    Args:
        clusters: number of models, with different initial values.
        epochs: passes over a client's data in a visit; ``None`` for the run's local work.
    """
    require(epochs is None or epochs > 0, f"hypcluster: epochs={epochs} must be positive")
    remark(clusters == 1, "hypcluster with clusters=1 is fedavg")
    return Method(layout={"model": Clustered(clusters)}, schedule=(Phase(epochs=epochs),))
