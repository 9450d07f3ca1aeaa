"""The clients and their data."""

from plures.federation.build import from_arrays, from_dataset, from_folder, from_pictures, from_sounds
from plures.federation.datasets import DATASETS, DatasetCard, load, locate
from plures.federation.datasets.domains import blend
from plures.federation.datasets.graphs import communities, from_graph
from plures.federation.datasets.ratings import movie_titles
from plures.federation.describe import ClientDescription, Description, describe
from plures.federation.federation import Federation
from plures.federation.inputs import Inputs
from plures.federation.mapped import Mapped
from plures.federation.partition import (
    dirichlet_per_class,
    dirichlet_per_client,
    iid,
    partition,
    pathological,
    quantity_skew,
)
from plures.federation.quality import Completeness, attenuation, completeness_report, degrade, imputed_slopes
from plures.federation.shift import brightness, noise, rotate
from plures.federation.splits import SPLITS, Split, SplitName, SplitRule, split_rows
from plures.federation.stream import Stream, by_column, by_label, by_time, permuted, rotated, seasons

__all__ = [
    "DATASETS",
    "SPLITS",
    "ClientDescription",
    "Completeness",
    "DatasetCard",
    "Description",
    "Federation",
    "Inputs",
    "Mapped",
    "Split",
    "SplitName",
    "SplitRule",
    "Stream",
    "attenuation",
    "blend",
    "brightness",
    "by_column",
    "by_label",
    "by_time",
    "communities",
    "completeness_report",
    "degrade",
    "describe",
    "dirichlet_per_class",
    "dirichlet_per_client",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_graph",
    "from_pictures",
    "from_sounds",
    "iid",
    "imputed_slopes",
    "load",
    "locate",
    "movie_titles",
    "noise",
    "partition",
    "pathological",
    "permuted",
    "quantity_skew",
    "rotate",
    "rotated",
    "seasons",
    "split_rows",
]
