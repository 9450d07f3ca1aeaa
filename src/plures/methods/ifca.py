"""IFCA, iterative federated clustering."""

from plures.method import Clustered, Combine, LowestLoss, Method
from plures.methods.entry import entry, remark


@entry("IFCA", "clustered", "Ghosh, Chung, Yin, Ramchandran 2020, NeurIPS, Algorithm 1", {"clusters": (2, 3, 4)})
def ifca(clusters: int = 3, margin: float = 0.0, epsilon: float | None = None) -> Method:
    """Several global models; at each visit a client takes the one with the lowest loss on its training data.

    Each model is the uniform mean of its clients' results; a model that nobody chose keeps its value. An unseen client
    chooses on its own labelled training data.

    Args:
        clusters: number of models, with different initial values.
        margin: hysteresis: a client that took part before switches only to a model whose loss is lower than its own
            model's by more than this fraction; 0 is the paper's rule.
        epsilon: of every choice, which a client then tells by randomised response; with ``+dp(trust=nobody)`` the whole
            method is locally private.
    """
    remark(clusters == 1, "ifca with clusters=1 is fedavg with uniform weights")
    return Method(layout={"model": Clustered(clusters, LowestLoss(margin, epsilon))}, combine=Combine("uniform"))
