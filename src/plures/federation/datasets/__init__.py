"""Named data sets: two in the package, the others from a folder."""

from plures.federation.datasets.catalogue import CATALOGUE, DatasetCard, load, locate

__all__ = ["CATALOGUE", "DatasetCard", "load", "locate"]
