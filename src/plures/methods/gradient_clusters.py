"""Clusters by the directions of the clients' initial gradients."""

from plures.method import Clustered, InitialGradients, Method
from plures.methods.entry import entry, remark


@entry(
    "Gradient clusters",
    "clustered",
    "one-shot form of Sattler, Müller, Samek 2020; k-means on the sphere: Dhillon, Modha 2001",
    {"clusters": (2, 3, 4)},
)
def gradient_clusters(clusters: int = 3) -> Method:
    """FedAvg in clusters of clients whose gradients at the initial model point in similar directions.

    Before the first round every client sends ``g_i = grad f_i(w_0)`` once; k-means groups the unit vectors
    ``g_i / ||g_i||``, and membership stays fixed. All clusters start from ``w_0``. An unseen client computes its own
    gradient at ``w_0`` and joins the nearest centroid.

    Args:
        clusters: number of clusters.
    """
    remark(clusters == 1, "gradient_clusters with clusters=1 is fedavg")
    return Method(layout={"model": Clustered(clusters, InitialGradients(), same_start=True)})
