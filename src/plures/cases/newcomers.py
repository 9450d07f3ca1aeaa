"""What a new client gets from a model that others trained, by the number of examples that it labels."""

from __future__ import annotations

from collections.abc import Sequence

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


def everybody(comparisons: Sequence[Comparison]) -> list[str]:
    """Each method's score for all clients that were new in one of several comparisons, by the labelled examples."""
    metric = comparisons[0].metric
    unit = ", %" if metric.percent else ""
    lines = []
    for method in comparisons[0].methods:
        curves = [curve(one.method(method.name), metric.name) for one in comparisons]
        found = {budget: np.concatenate([one[budget] for one in curves]) for budget in curves[0]}
        number = Number.among(metric, [float(value) for values in found.values() for value in values])
        cells = [
            f"{budget}: {number(mean_known(values))} ({number(float(values.min()))} to {number(float(values.max()))})"
            for budget, values in found.items()
        ]
        people = max(map(len, found.values()))
        lines.append(
            f"{method.title}, {metric.title} of {people} clients when they were new, mean (lowest to highest), "
            f"by labelled examples{unit}: {', '.join(cells)}."
        )
    return lines
