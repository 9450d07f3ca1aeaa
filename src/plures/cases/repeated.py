"""The same methods on several divisions of the same data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plures.cases.answer import whole
from plures.evaluate import Comparison
from plures.evaluate.summary import interval
from plures.report.columns import Number


def repeated(comparisons: Sequence[Comparison]) -> list[str]:
    """Each method's mean over all divisions, and what it gains on FedAvg with a 95 % interval over divisions."""
    first = comparisons[0]
    metric, sign = first.metric, 1 if first.metric.higher else -1
    found = {
        method.name: np.array([whole(one.method(method.name), metric) for one in comparisons])
        for method in first.methods
    }
    number = Number.among(metric, [float(value) for values in found.values() for value in values])
    unit = ", %" if metric.percent else ""
    lines = []
    for name in sorted(found, key=lambda name: -sign * float(found[name].mean())):
        gain, width = interval((sign * (found[name] - found["fedavg"])).tolist())
        against = "" if name == "fedavg" else f"; gain over FedAvg {number(gain)} \N{PLUS-MINUS SIGN} {number(width)}"
        lines.append(
            f"{first.method(name).title}, mean {metric.title} of {len(comparisons)} divisions{unit}: "
            f"{number(float(found[name].mean()))} ({', '.join(map(number, found[name].tolist()))}{against})."
        )
    return lines
