"""Attacks on network services: alarms at a stated false-alarm rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plures.cases.case import Case, Part
from plures.evaluate import Comparison

ALARMS = 0.01
METHOD = f"threshold(utility=recall,alarms={ALARMS})"
RARE = 0.001
"""Share of attacks among the connections of a network in normal use, for the sentence on how many alarms are true."""
WORK = {
    "model": "mlp",
    "model_options": {"hidden": [32]},
    "metric": ["recall_at_fpr_1", "sensitivity", "specificity"],
    "rounds": 15,
    "every": 5,
    "seeds": 3,
    "tune_rounds": 5,
    "steps": 40,
    "batch_size": 64,
    "momentum": 0.9,
    "learning_rates": (0.03, 0.1),
}
DATA = {"attacks": "one", "both": 30, "most": 2000}


def alarms(comparison: Comparison) -> list[str]:
    """What thresholds that were set beforehand do: attacks found, false alarms, and how many alarms would be true."""
    own = next(method.name for method in comparison.methods if method.name.startswith("threshold"))
    lines = []
    for who, name in (
        ("the common threshold", "fedavg"),
        (f"each service's own for {100 * ALARMS:.0f} % false alarms", own),
    ):
        method = comparison.method(name)
        found = known(method.per_client("sensitivity"))
        false = 1 - known(method.per_client("specificity"))
        worst = comparison.federation.clients[int(np.nanargmin(method.per_client("specificity")))]
        true = RARE * found.mean() / (RARE * found.mean() + (1 - RARE) * false.mean())
        lines.append(
            f"FedAvg with {who} finds {100 * found.mean():.1f} % of a service's attacks with {100 * false.mean():.1f} "
            f"% false alarms (means over services; most, {100 * false.max():.1f} %, at {worst}). If one connection in "
            f"{1 / RARE:.0f} were an attack, {100 * true:.1f} % of its alarms would be true."
        )
    return lines


def known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of the clients for which a metric is defined."""
    return values[~np.isnan(values)]


intrusion = Case(
    name="intrusion",
    title="Attacks on fourteen network services",
    question=(
        "How many attacks do we find if one in a hundred normal connections may raise an alarm, does each service need "
        "a detector of its own, and what happens when new attacks come?"
    ),
    parts=(
        Part(
            name="known",
            title="Known kinds of attack, by recall at 1 % false alarms",
            data="nsl_kdd",
            personal=("ditto", "apfl", "fedper", "eefed", METHOD),
            options={**WORK, "data_options": DATA},
            told=("accuracy", "auroc", "auprc"),
            worth=0.01,
            notes=alarms,
        ),
        Part(
            name="new",
            title="New kinds of attack, the official test part",
            data="nsl_kdd",
            personal=("eefed", METHOD),
            options={**WORK, "data_options": {**DATA, "official": True}},
            told=("accuracy", "auroc", "auprc"),
            worth=0.01,
            notes=alarms,
        ),
    ),
    advice=(
        "let each service learn its own traffic: training that ends at home, local or fine-tuned, finds more at the "
        "same false alarms than one detector for all. Set the threshold on later traffic of the same service, and "
        "watch the false-alarm rate, because new traffic breaks it. Expect new attacks to be found far less often than "
        "known ones, and reckon with how rare attacks are: at one in a thousand connections, most alarms are false."
    ),
)
