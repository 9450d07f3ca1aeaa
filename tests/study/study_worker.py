"""A process that works on a study, for tests that kill it or start two."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import torch

from plures.study import Store, begin, conduct, plan_of, read_study

SMALL = """
name = "small"
seeds = 2
keep_models = false
methods = ["ditto"]

[[data]]
name = "heart"
model = "logistic"
max_examples = 40

[[budgets]]
rounds = 6

[tuning]
trials = 3
rounds = 2
search = "optuna"

[execution]
backend = "loop"
chunk = 4
threads = 1
checkpoint_every = 1
"""


def work(file: str, folder: str) -> None:
    """Do the remaining work of a study."""
    torch.set_num_threads(1)
    plan, store = plan_of(read_study(Path(file)), "optuna"), Store(Path(folder))
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    conduct(plan, store, plan.units, lambda event: None)
    store.close()


def rows(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a study's database says about results, without wall times."""
    import json

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_times(inner) for key, inner in value.items() if key != "seconds"}
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    db = sqlite3.connect(folder / "study.db")
    units = db.execute("SELECT id, cell, method, kind, seed, state, result FROM units ORDER BY id").fetchall()
    trials = db.execute(
        "SELECT unit, number, state, setting, curve, validation, notes FROM trials ORDER BY unit, number"
    )
    found = {
        "units": [
            (*row[:-1], without_times(json.loads(row[-1])) if row[3] != "measure" else "a timing") for row in units
        ],
        "trials": trials.fetchall(),
        "cells": db.execute("SELECT * FROM cells ORDER BY key").fetchall(),
    }
    db.close()
    return found
