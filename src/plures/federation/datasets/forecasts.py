"""Forecasts of fine dust at twelve stations in Beijing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plures.errors import PluresError
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Examples
from plures.federation.build.options import Options
from plures.federation.datasets.air import BEGIN, STATIONS, measured
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation

AGO = (1, 2, 3, 6, 12, 24)
"""Hours before the present of which PM2.5 is an input."""
YEARS = ("2015-03-01T00", "2016-03-01T00")
"""When the validation and the test year begin."""
URBAN = ("Aotizhongxin", "Dongsi", "Guanyuan", "Gucheng", "Nongzhanguan", "Tiantan", "Wanliu", "Wanshouxigong")


@dataset(
    task="forecast: change of PM2.5 in the next hours from the last ones, other pollutants and weather",
    clients="12 stations",
    examples=65721,
    megabytes=5.3,
    **STATIONS,
)
def beijing_forecast(
    *, seed: int = 0, ahead: Sequence[int] = (6, 12, 24), every: int = 6, standardize: bool = True
) -> Federation:
    """Beijing Multi-Site Air Quality (Zhang et al. 2017): how PM2.5 changes at 12 stations in the next hours.

    Targets are differences from the present in ug/m3, so predicting 0 says that nothing changes; errors are those of a
    forecast of PM2.5 itself. Inputs are PM2.5 at present and 1, 2, 3, 6, 12 and 24 hours ago, and what `beijing_air`
    has. The first two years train, the third validates and the fourth tests. An example whose forecast reaches
    into the next of them is left out, and so are those without PM2.5 at present or at a target. Metadata ``place``:
    eight stations are in the city, four in the outskirts and hills.

    Args:
        seed: without effect; nothing is drawn.
        ahead: hours after the present, one step of the forecast each.
        every: take every so many hours, from midnight.
        standardize: inputs to mean 0 and standard deviation 1 over all train examples; targets stay ug/m3.
    """
    if every < 1 or not ahead or min(ahead) < 1:
        raise PluresError(f"beijing_forecast: ahead={tuple(ahead)}, every={every}; give numbers of hours of at least 1")
    raw = read(data_folder() / "beijing_air" / "beijing_air.npz")
    dust, end = raw["x"][:, 0], raw["x"].shape[2] - max(ahead)
    hours = np.arange(-(-max(AGO) // every) * every, end, every)
    others, columns = measured(raw, hours)
    inputs = np.concatenate([np.stack([dust[:, hours - ago] for ago in (0, *AGO)], -1), others], -1)
    targets = np.stack([dust[:, hours + step] - dust[:, hours] for step in ahead], -1)
    begins = [int((np.datetime64(year, "h") - np.datetime64(BEGIN, "h")).astype(int)) for year in YEARS]
    part, reached = (np.searchsorted(begins, when, side="right") for when in (hours, hours + max(ahead)))
    used = ~np.isnan(targets).any(-1) & (part == reached)
    station = raw["client_names"]
    examples = Examples(
        inputs=inputs[used],
        targets=targets[used],
        client=np.broadcast_to(station[:, None], used.shape)[used],
        columns=("PM2.5", *(f"PM2.5 {ago} hours ago" for ago in AGO), *columns),
        given=np.broadcast_to(part, used.shape)[used],
        ordered=True,
    )
    options: Options = {
        "name": "beijing_forecast",
        "task": "forecast",
        "metadata": {"place": {name: "city" if name in URBAN else "outskirts" for name in station.tolist()}},
        "missing": "impute",
        "standardize": standardize,
        "source": "Beijing Multi-Site Air Quality, doi:10.24432/C5RK5G, CC BY 4.0",
    }
    return assemble(examples, options, "beijing_forecast")
