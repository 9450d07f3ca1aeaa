"""The families of methods that advice ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Methods that address the same difference between clients.

    Attributes:
        title: its title.
        methods: names in the catalogue, the simplest first.
        competes: whether it is ranked against the others; the others serve a different purpose.
    """

    title: str
    methods: tuple[str, ...]
    competes: bool = True


FAMILIES: Mapping[str, Family] = {
    "finetune": Family("shared model, fine-tuned by each client", ("fedavg_ft", "perfedavg", "reptile", "wise_ft")),
    "global": Family("one shared model", ("fedavg", "fedprox", "scaffold", "fedopt")),
    "partial": Family("shared body, personal head", ("fedper", "fedrep", "fedrod", "fedbabu")),
    "norm": Family("personal feature layers, shared rest", ("fedbn", "lgfedavg", "personal_se")),
    "regularised": Family(
        "own model held near the shared one", ("ditto", "mrmtl", "apfl", "pfedme", "hierarchical_bayes")
    ),
    "clustered": Family("one model for each group", ("ifca", "gradient_clusters", "fedem", "cfl")),
    "mixing": Family("mixture of similar clients' models", ("fedala", "fedamp", "fedfomo", "apple", "knnper")),
    "calibration": Family("shared model, own class frequencies or threshold", ("prior_shift", "threshold")),
    "quality": Family("weights by the quality of data", ("quality", "debias")),
    "local": Family("each client alone", ("local",)),
    "coldstart": Family(
        "a model for newcomers from their metadata", ("metadata_clusters", "pfedhn", "cold_start"), competes=False
    ),
    "robust": Family("look at these clients, then a robust combination (--combine median)", (), competes=False),
    "fair": Family("weights that lift the clients served worst", ("qffl",), competes=False),
}
