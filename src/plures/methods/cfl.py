"""CFL, clustered federated learning by recursive splits."""

from plures.method import Clustered, Method, Splitting
from plures.methods.entry import entry, remark


@entry(
    "CFL",
    "clustered",
    "Sattler, Müller, Samek 2020, IEEE TNNLS",
    {"eps1": (0.1, 0.2, 0.4), "eps2": (0.4, 0.8, 1.6)},
)
def cfl(eps1: float = 0.4, eps2: float = 1.6, warmup: int = 20, gamma: float = 0.0, minimum: int = 1) -> Method:
    """FedAvg in clusters; a cluster is split in two when its model has converged but its members still pull apart.

    A cluster is split if ``||sum p_i change_i|| < eps1`` and ``max ||change_i|| > eps2``, into the two parts with the
    smallest maximum cosine between changes across them; both continue from the common model. A split needs all members
    in one cohort, so use full participation. An unseen client joins the cluster whose model fits its data best.

    Args:
        eps1: bound on the norm of the mean change of a cluster near its optimum; it grows with the learning rate and
            the local work, as ``eps2`` does.
        eps2: bound on the norm of a single change; infinity never splits.
        warmup: rounds before the first check for a split.
        gamma: separation ``sqrt((1 - largest cosine across) / 2)`` that a split must exceed; 0 imposes no condition.
        minimum: smallest cluster that may be split off; a cluster of one is local training.
    """
    remark(eps2 == float("inf"), "cfl with eps2=inf never splits: it is fedavg")
    return Method(layout={"model": Clustered(1, Splitting(eps1, eps2, warmup, gamma, minimum))})
