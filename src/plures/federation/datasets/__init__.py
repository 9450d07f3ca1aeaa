"""Named data sets: two in the package, the others from a folder."""

from plures.federation.datasets.card import DatasetCard
from plures.federation.datasets.catalogue import DATASETS, load, locate

__all__ = ["DATASETS", "DatasetCard", "load", "locate"]
