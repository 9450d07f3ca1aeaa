"""Remaining life of engines, and failures by type of product."""

from __future__ import annotations

import numpy as np

from plures.cases.case import Case, Part
from plures.cases.units import penalties, rates
from plures.evaluate import Comparison

CAP = 125.0
"""Cycles above which remaining life is not told apart."""
SHOWN = ("constant", "local", "fedavg", "fedavg_ft", "metadata_clusters")


def official(comparison: Comparison) -> list[str]:
    """RMSE and NASA score over all test engines of a population, which papers report, as means over seeds."""
    sizes = np.array(comparison.federation.sizes["test"])
    population = np.array(comparison.federation.metadata["population"])
    lines = []
    for kind in dict.fromkeys(population.tolist()):
        own, cells = population == kind, []
        for method in comparison.methods:
            if method.name.split()[0] in SHOWN:
                squares = [np.square(seed.test.values("rmse"))[own] @ sizes[own] for seed in method.seeds]
                scores = [np.sum(np.asarray(seed.test.values("nasa_score"))[own]) for seed in method.seeds]
                rmse = np.mean(np.sqrt(np.array(squares) / sizes[own].sum()))
                score = np.mean(scores)
                cells.append(f"{method.title} {rmse:.1f} / {score:{'.0f' if score < 1e7 else '.3g'}}")
        lines.append(f"RMSE / NASA score over all {sizes[own].sum()} test engines of {kind}: {', '.join(cells)}.")
    return lines


LIFE = {
    "model": "plures.cases.units:in_units",
    "model_options": {"unit": CAP},
    "metric": ["rmse", "nasa_score"],
    "rounds": 25,
    "every": 5,
    "seeds": 3,
    "tune_rounds": 5,
    "batch_size": 64,
    "learning_rates": rates(CAP, 0.03, 0.1),
    "space": {"ditto": {"lam": penalties(CAP, 0.1, 1.0)}},
    "momentum": 0.9,
}

maintenance = Case(
    name="maintenance",
    title="Fleets of engines, and three types of product",
    question=(
        "How long will this engine last, which products will fail, and does each fleet or type of product need a "
        "model of its own?"
    ),
    parts=(
        Part(
            name="life",
            title="Remaining life in 20 fleets, engines that nobody has seen, in cycles",
            data="cmapss_fleets",
            personal=("ditto", "apfl", "fedper", "ifca", "metadata_clusters(column=population)"),
            options=LIFE,
            told=("nasa_score",),
            worth=0.5,
            notes=official,
        ),
        Part(
            name="sensors",
            title="The same without the engine's own first cycles",
            data="cmapss_fleets",
            personal=("ditto", "metadata_clusters(column=population)"),
            options={**LIFE, "data_options": {"own": False}},
            told=("nasa_score",),
            worth=0.5,
            notes=official,
        ),
        Part(
            name="failures",
            title="Failures by type of product, one in thirty jobs, by average precision",
            data="ai4i2020",
            personal=("ditto", "apfl", "fedper", "pfedme", "ifca"),
            options={
                "model": "mlp",
                "model_options": {"hidden": [32]},
                "metric": ["auprc", "recall_at_precision_50"],
                "rounds": 25,
                "every": 5,
                "seeds": 3,
                "tune_rounds": 5,
                "batch_size": 64,
                "learning_rates": (0.1, 0.3),
                "momentum": 0.9,
            },
            told=("accuracy", "auroc", "recall_at_precision_50"),
            worth=0.01,
        ),
    ),
    advice=(
        "test on engines that nobody has trained on, because no engine in use knows when it will fail. Before a "
        "personal model, try a personal input: how far a machine has moved from its own first cycles is worth more "
        "here than any personalized method, and needs no label. Share one model among all fleets unless you have many "
        "failures of each kind. For rare failures choose by average precision; a type of product with many jobs may "
        "keep a model of its own, one with few never."
    ),
)
