"""Clusters by client metadata."""

from plures.method import By, Clustered, Method
from plures.methods.entry import entry


@entry("Metadata clusters", "clustered", "FedAvg within known groups; the baseline of learned clusters")
def metadata_clusters(column: str = "group") -> Method:
    """FedAvg among the clients with the same value in a metadata column: a site type, a country, a device.

    All groups start from the same model. An unseen client joins its group; with an unknown value, it joins the
    group whose model has the lowest loss on its training data.

    Args:
        column: the metadata column.
    """
    return Method(layout={"model": Clustered(1, By(column), same_start=True)})
