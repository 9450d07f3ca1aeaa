"""Robust combination: one file for each idea of how uploads count when some of them may be hostile or broken."""

from collections.abc import Mapping

from plures.method import Reducer
from plures.robust.centred import CentredClip
from plures.robust.coordinates import Median, TrimmedMean
from plures.robust.flame import Flame
from plures.robust.foolsgold import FoolsGold
from plures.robust.geometric import GeometricMedian
from plures.robust.krum import Bulyan, Krum, MultiKrum
from plures.robust.norms import NormBound
from plures.robust.prepared import Bucketing, Clipped, Neighbours
from plures.robust.robust import Robust
from plures.robust.subsets import DivideAndConquer, SmallestDiameter
from plures.robust.trust import FLTrust

REDUCERS: Mapping[str, type[Reducer]] = {
    "arc": Clipped,
    "bucketing": Bucketing,
    "bulyan": Bulyan,
    "centred_clip": CentredClip,
    "dnc": DivideAndConquer,
    "flame": Flame,
    "fltrust": FLTrust,
    "foolsgold": FoolsGold,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "mda": SmallestDiameter,
    "median": Median,
    "multi_krum": MultiKrum,
    "nnm": Neighbours,
    "norm_bound": NormBound,
    "trimmed_mean": TrimmedMean,
}
"""Robust combinations that are added to a method by name: ``ditto+krum(f=1)``."""

__all__ = [
    "REDUCERS",
    "Bucketing",
    "Bulyan",
    "CentredClip",
    "Clipped",
    "DivideAndConquer",
    "FLTrust",
    "Flame",
    "FoolsGold",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "Neighbours",
    "NormBound",
    "Robust",
    "SmallestDiameter",
    "TrimmedMean",
]
