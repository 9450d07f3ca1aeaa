"""A guess at the actual unit of a column."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

POWERS = (10.0, 0.1, 100.0, 0.01, 1000.0, 0.001)
FACTORS: Mapping[str, Mapping[float, str]] = {
    "mg/dl": {38.67: "mmol/l of cholesterol", 18.016: "mmol/l of glucose", 88.57: "mmol/l of triglycerides"},
    "mm Hg": {7.5: "kPa", 10.0: "cm Hg"},
    "years": {1 / 12: "months", 1 / 365.25: "days"},
    "kg": {0.4536: "pounds", 0.001: "grams"},
    "cm": {2.54: "inches", 100.0: "metres", 0.1: "millimetres"},
}
"""Declared unit -> conversion factor to it -> other unit."""


def guess(values: NDArray[np.float64], low: float, high: float, unit: str | None) -> str:
    """A hint if all values lie outside ``[low, high]`` and one factor brings all of them in; else empty.

    If several factors do, the one that brings the median nearest to the middle of the range is named.

    Args:
        values: ``(n,)`` numbers.
        low: least allowed value; both bounds must be finite.
        high: largest allowed value.
        unit: declared unit.
    """
    if not len(values) or not np.isfinite([low, high]).all() or bool(((values >= low) & (values <= high)).any()):
        return ""
    known = FACTORS.get(unit or "", {})
    fits = [f for f in {*POWERS, *known} if bool(((values * f >= low) & (values * f <= high)).all())]
    if not fits:
        return ""
    best = min(fits, key=lambda factor: abs(float(np.median(values)) * factor - (low + high) / 2))
    if best in known:
        return f"all would fit if they were {known[best]}: are they?"
    times = f"multiplied by {best:g}" if best > 1 else f"divided by {1 / best:g}"
    return f"all would fit if they were {times}: is the unit right?"
