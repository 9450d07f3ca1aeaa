"""Air quality at twelve stations in Beijing."""

from __future__ import annotations

from typing import Any

import numpy as np

from plures.errors import PluresError
from plures.federation.build import from_arrays
from plures.federation.build.examples import Array
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation
from plures.federation.splits import SplitRule

BEGIN = "2013-03-01T00"
COMPASS = ("E", "ENE", "NE", "NNE", "N", "NNW", "NW", "WNW", "W", "WSW", "SW", "SSW", "S", "SSE", "SE", "ESE")
YEARS = SplitRule(validation=0.25, test=0.25, by="time")

STATIONS: dict[str, Any] = {
    "licence": "CC BY 4.0",
    "source": "https://doi.org/10.24432/C5RK5G",
    "citation": "Zhang et al.: Cautionary Tales on Air-Quality Improvement in Beijing, Proceedings of the Royal "
    "Society A 2017",
    "files": ("beijing_air/beijing_air.npz",),
    "how_to_get": "save x float32 (stations, columns, hours) with NaN, wind_dir, columns, wind_names and client_names "
    "as one .npz",
}
"""The file of the stations, of which there are two data sets."""


@dataset(
    task="regression: PM2.5 from other pollutants, weather, month and hour, with missing values",
    clients="12 stations",
    examples=68614,
    megabytes=5.3,
    **STATIONS,
)
def beijing_air(
    *, seed: int = 0, split: SplitRule | None = None, every: int = 6, standardize: bool = True
) -> Federation:
    """Beijing Multi-Site Air Quality (Zhang et al. 2017): 12 stations, hourly 2013-03 to 2017-02; regression of PM2.5.

    Inputs are the other pollutants (ug/m3), temperature, pressure, dew point (C, hPa), rain (mm), wind speed (m/s)
    and the wind's direction as a unit vector, month and hour. Hours without PM2.5 are left out; a missing input
    becomes the mean over all train hours, and an indicator column says so. `plures.federation.seasons` makes four
    tasks of it.

    Args:
        seed: of the splits, if they are random.
        split: shares of the splits. By default two years train, the third validates and the fourth tests, so that
            each split has every season.
        every: take every so many hours, from midnight; 1 takes all 420768 rows.
        standardize: inputs and targets to mean 0 and standard deviation 1 over all train hours.
    """
    if every < 1:
        raise PluresError(f"beijing_air: every={every} hours; give at least 1")
    rule = split or YEARS
    raw = read(data_folder() / "beijing_air" / "beijing_air.npz")
    hours = np.arange(0, raw["x"].shape[2], every)
    inputs, columns = measured(raw, hours)
    station, shape = raw["client_names"], inputs.shape[:2]
    target = raw["x"][:, 0, hours]
    used = ~np.isnan(target)
    return from_arrays(
        inputs[used],
        target[used],
        np.broadcast_to(station[:, None], shape)[used],
        time=np.broadcast_to(hours, shape)[used] if rule.by == "time" else None,
        name="beijing_air",
        task="regression",
        columns=columns,
        metadata={"station": {name: name for name in station.tolist()}},
        split=rule,
        seed=0 if rule.by == "time" else seed,
        missing="impute",
        standardize=standardize,
        standardize_targets=standardize,
        source="Beijing Multi-Site Air Quality, doi:10.24432/C5RK5G, CC BY 4.0",
    )


def measured(raw: dict[str, Array], hours: Array) -> tuple[Array, tuple[str, ...]]:
    """Everything but PM2.5 at some hours, ``(stations, hours, columns)`` with NaN where missing, and the columns."""
    stamp = np.datetime64(BEGIN, "h") + hours
    angle = np.deg2rad(22.5 * np.array([COMPASS.index(name) for name in raw["wind_names"].tolist()]))
    code = raw["wind_dir"][:, hours]
    known = code < len(angle)
    at = np.where(known, code, 0)
    values = [
        *raw["x"][:, 1:, hours].transpose(1, 0, 2),
        np.where(known, np.cos(angle)[at], np.nan),
        np.where(known, np.sin(angle)[at], np.nan),
        np.broadcast_to(stamp.astype("datetime64[M]").astype(np.int64) % 12 + 1, code.shape),
        np.broadcast_to(hours % 24, code.shape),
    ]
    columns = (*raw["columns"][1:].tolist(), "wind from east", "wind from north", "month", "hour")
    return np.stack(values, axis=-1), columns
