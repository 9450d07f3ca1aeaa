"""Survival with breast cancer in six regions."""

from __future__ import annotations

from collections.abc import Sequence

from plures.cases.case import Case, Part
from plures.cases.repeated import repeated
from plures.evaluate import Comparison
from plures.federation import SplitRule

DIVISIONS = range(5)
"""Seeds of the divisions into train, validation and test patients."""


def own(seed: int) -> Part:
    """All patients, divided anew."""
    return Part(
        name=f"own-{seed}",
        title=f"All patients, tuned, division {seed + 1} of {len(DIVISIONS)}",
        data="tcga_brca",
        personal=("ditto", "apfl", "mrmtl", "pfedme", "ifca"),
        shared=("fedprox", "fedopt"),
        options={
            "model": "logistic",
            "rounds": 30,
            "every": 3,
            "seeds": 2,
            "batch_size": None,
            "steps": 5,
            "data_options": {"official": False, "seed": seed, "split": SplitRule(validation=0.2, test=0.3)},
        },
        worth=0.01,
    )


def divisions(comparisons: Sequence[Comparison]) -> list[str]:
    """What all divisions say."""
    return repeated(comparisons[1:])


survival = Case(
    name="survival",
    title="Six regions predict survival with breast cancer",
    question=(
        "Should a region rank its patients by risk with a model of its own, with one model of all regions, or with "
        "something between?"
    ),
    parts=(
        Part(
            name="published",
            title="FLamby's benchmark, with its learning rates",
            data="tcga_brca",
            personal=(),
            shared=(
                "fedprox(mu=0.1)",
                "scaffold",
                "plures.cases.flamby:fedadam(server_lr=0.1)",
                "plures.cases.flamby:fedyogi(server_lr=0.1)",
                "plures.cases.flamby:fedadagrad(server_lr=1.0)",
            ),
            options={
                "model": "logistic",
                "rounds": 5,
                "every": 5,
                "steps": 100,
                "batch_size": 8,
                "seeds": 5,
                "data_options": {"split": SplitRule(validation=0), "standardize": False},
                "learning_rates": (0.1,),
                "tune_rounds": 1,
                "space": {
                    "fedavg_ft": {},
                    "scaffold": {"lr": (0.01,)},
                    "fedadam server_lr=0.1": {"lr": (0.01,)},
                    "fedyogi server_lr=0.1": {"lr": (0.01,)},
                    "fedadagrad server_lr=1.0": {"lr": (0.01,)},
                },
            },
            worth=0.01,
            published_means={
                "fedavg": (0.732, 0.162),
                "fedadam server_lr=0.1": (0.815, 0.023),
                "fedadagrad server_lr=1.0": (0.813, 0.004),
            },
        ),
        *map(own, DIVISIONS),
    ),
    advice=(
        "standardise the columns, train one model of all regions, and rank patients with it. A pull of each region's "
        "own model towards the shared one does no harm here, but what it gains is smaller than what another division "
        "of the patients changes. Divide the patients several times and count deaths, not patients: a region with one "
        "death among its test patients has a C-index of one patient. A region that learns from its own patients alone "
        "loses more than any method here gains."
    ),
    together=divisions,
)
