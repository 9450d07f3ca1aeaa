"""Per-client metrics, honest selection and comparison."""

from plures.evaluate.code import Code
from plures.evaluate.cold import ColdStart, cold_start_curve, with_labels
from plures.evaluate.compare import ComparisonProgress, compare
from plures.evaluate.fit import Fit, finish, fit
from plures.evaluate.folder import RunFolder
from plures.evaluate.predictions import predictions
from plures.evaluate.results import BASELINES, ClientScores, Comparison, MethodResult, Point, Row, SeedResult
from plures.evaluate.scores import Scores, pooled, primary, score
from plures.evaluate.spec import RunSpec
from plures.evaluate.stream import StreamScores, follow
from plures.evaluate.summary import Summary, bootstrap, harmed, interval, paired_test, summarize

__all__ = [
    "BASELINES",
    "ClientScores",
    "Code",
    "ColdStart",
    "Comparison",
    "Fit",
    "MethodResult",
    "Point",
    "Row",
    "RunFolder",
    "RunSpec",
    "Scores",
    "SeedResult",
    "ComparisonProgress",
    "StreamScores",
    "Summary",
    "bootstrap",
    "cold_start_curve",
    "compare",
    "finish",
    "fit",
    "follow",
    "harmed",
    "interval",
    "paired_test",
    "pooled",
    "predictions",
    "primary",
    "score",
    "summarize",
    "with_labels",
]
