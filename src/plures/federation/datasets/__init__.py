"""Named data sets: two in the package, the others from a folder."""

from plures.federation.datasets.card import DatasetCard
from plures.federation.datasets.catalogue import CATALOGUE, load, locate

__all__ = ["CATALOGUE", "DatasetCard", "load", "locate"]
