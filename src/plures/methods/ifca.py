"""IFCA, iterative federated clustering."""

from plures.method import Clustered, Combine, Method
from plures.methods.entry import entry, remark


@entry("IFCA", "clustered", "Ghosh, Chung, Yin, Ramchandran 2020, NeurIPS, Algorithm 1", {"clusters": (2, 3, 4)})
def ifca(clusters: int = 3) -> Method:
    """Several global models; at each visit a client takes the one with the lowest loss on its training data.

    Each model is the uniform mean of what its clients made of it; a model that nobody chose keeps its value. An unseen
    client chooses on its own labelled training data.

    Args:
        clusters: number of models, with different initial values.
    """
    remark(clusters == 1, "ifca with clusters=1 is fedavg with uniform weights")
    return Method(layout={"model": Clustered(clusters)}, combine=Combine("uniform"))
