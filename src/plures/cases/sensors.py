"""Forecasts of fine dust by sensors in a city and its hills."""

from __future__ import annotations

from plures.cases.case import Case, Part
from plures.cases.course import Course
from plures.cases.units import penalties, rates
from plures.federation import seasons

UNIT = 100.0
"""A typical change of PM2.5, ug/m3."""


WORK = {
    "model": "plures.cases.units:in_units",
    "model_options": {"unit": UNIT},
    "batch_size": 64,
    "momentum": 0.9,
    "clip": UNIT**2,
}

sensors = Case(
    name="sensors",
    title="Twelve stations forecast fine dust",
    question=(
        "How much fine dust will there be in 6, 12 and 24 hours, does each station need a forecast of its own, and "
        "does the network forget spring while it learns winter?"
    ),
    parts=(
        Part(
            name="year",
            title="Forecasts for a year that nobody has seen, in ug/m3",
            data="beijing_forecast",
            personal=("ditto", "apfl", "fedper", "ifca", "metadata_clusters(column=place)"),
            options={
                **WORK,
                "metric": ["rmse", "rmse_step_1", "rmse_step_2", "rmse_step_3"],
                "rounds": 20,
                "every": 4,
                "seeds": 3,
                "tune_rounds": 5,
                "learning_rates": rates(UNIT, 0.01, 0.03),
                "space": {"ditto": {"lam": penalties(UNIT, 0.1, 1.0)}},
            },
            told=("mae", "rmse_step_1", "rmse_step_3"),
            worth=1.0,
        ),
    ),
    courses=(
        Course(
            name="seasons",
            title="Season after season, spring to winter, without keeping old data",
            data="beijing_forecast",
            stream=seasons,
            methods={
                "fedavg": ({},),
                "ewc": ({"lam": 1.0}, {"lam": 10.0}, {"lam": 100.0}),
                "local": ({},),
            },
            options={**WORK, "metric": "rmse", "lr": rates(UNIT, 0.03)[0], "rounds": 10},
        ),
    ),
    advice=(
        "compare with the forecast that nothing changes before comparing methods with each other. One model for all "
        "stations is enough here, and a new station has it on its first day. Train on whole years if you may keep old "
        "data. If you may not, EWC keeps nearly all that FedAvg forgets, mostly by changing little; so test whether to "
        "go on training at all. Split by time, never at random."
    ),
)
