"""The clients and their data."""

from plures.federation.build import from_arrays, from_dataset, from_folder, from_frame
from plures.federation.datasets import CATALOGUE, DatasetCard, load, locate
from plures.federation.describe import ClientDescription, Description, describe
from plures.federation.federation import SPLITS, Federation, Split, SplitName, Task
from plures.federation.partition import (
    dirichlet_per_class,
    dirichlet_per_client,
    iid,
    partition,
    pathological,
    quantity_skew,
)
from plures.federation.shift import brightness, noise, rotate
from plures.federation.splits import SplitRule, split_rows

__all__ = [
    "CATALOGUE",
    "SPLITS",
    "ClientDescription",
    "DatasetCard",
    "Description",
    "Federation",
    "Split",
    "SplitName",
    "SplitRule",
    "Task",
    "brightness",
    "describe",
    "dirichlet_per_class",
    "dirichlet_per_client",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_frame",
    "iid",
    "load",
    "locate",
    "noise",
    "partition",
    "pathological",
    "quantity_skew",
    "rotate",
    "split_rows",
]
