"""What a new client gets from a model that others trained, by the number of examples that it labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plures.evaluate import Comparison, MethodResult
from plures.evaluate.summary import mean_known
from plures.report.columns import Number


def by_labels(comparison: Comparison) -> list[str]:
    """Mean test score of the new clients for each method, by the number of examples that each new client labels."""
    metric = comparison.metric
    found = {
        method.title: {b: mean_known(v) for b, v in curve(method, metric.name).items()} for method in comparison.methods
    }
    number = Number.among(metric, [value for means in found.values() for value in means.values()])
    unit = ", %" if metric.percent else ""
    return [
        f"{title}, new clients' {metric.title} by labelled examples{unit}: "
        f"{', '.join(f'{budget}: {number(value)}' for budget, value in means.items())}."
        for title, means in found.items()
        if means
    ]


def curve(method: MethodResult, metric: str) -> dict[str, NDArray[np.float64]]:
    """The new clients' test scores, a mean over seeds for each, by the number of labelled examples."""
    curves = [seed.details.cold for seed in method.seeds if seed.details is not None]
    found = dict[str, NDArray[np.float64]]()
    for budget in curves[0] if curves else ():
        runs = [[np.nan if value is None else value for value in one[budget].metrics[metric]] for one in curves]
        found[budget] = np.mean(np.array(runs, dtype=np.float64), axis=0)
    return found
