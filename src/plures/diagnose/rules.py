"""The rules of advice, as data: conditions on the measurements, points for families, and reasons."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from plures.diagnose.result import LEVEL

Comparison = Literal["<", ">="]
COMPARE: Mapping[Comparison, Callable[[float, float], bool]] = {"<": operator.lt, ">=": operator.ge}


@dataclass(frozen=True)
class Rule:
    """One rule; thresholds marked as ours were fixed before the advice was checked (docs/diagnosis.md).

    Attributes:
        name: its name.
        when: conditions on measured numbers; all must hold; a missing number (NaN) meets none.
        points: points by family; negative points count against it.
        says: a sentence with placeholders for the numbers.
        source: where threshold and claim come from.
    """

    name: str
    when: tuple[tuple[str, Comparison, float], ...]
    points: Mapping[str, float]
    says: str
    source: str

    def applies(self, numbers: Mapping[str, float]) -> bool:
        return all(COMPARE[sign](numbers[name], limit) for name, sign, limit in self.when)


LABELS, FEATURES, CONCEPT, UNEQUAL, POOR = 0.05, 0.01, 0.01, 0.3, 0.1
"""Smallest difference that counts, if it is also significant: excess total variation, share of the kernel's variance,
gain in held-out loss, Gini coefficient, spread of shares."""
STRONG_LABELS, STRONG_CONCEPT, RELEVANT = 0.3, 0.05, 0.05
SMALL = 50

SIGNIFICANT = f"p <= {LEVEL} by permutation"
OURS = "threshold: our choice"

RULES: tuple[Rule, ...] = (
    Rule(
        "default", (), {"finetune": 1.0},
        "Fine-tuning a shared model is cheap and hard to beat; another family has to be better for a reason.",
        "Jiang et al. 2019; Cheng, Chadha, Duchi 2021",
    ),
    Rule(
        "alike",
        (("labels", "<", 1), ("features", "<", 1), ("concept", "<", 1)),
        {"global": 2.0, "local": -1.0},
        "Labels, inputs and the relation between them differ no more than chance explains: the clients look like one "
        "population.",
        f"{SIGNIFICANT}; {OURS}",
    ),
    Rule(
        "strong label skew", (("labels", ">=", 1), ("label_excess", ">=", STRONG_LABELS)),
        {"partial": 2.0, "finetune": 1.0, "regularised": 1.0, "local": 0.5, "global": -1.0},
        "Label frequencies are {label_excess:.2f} further from the pooled ones than chance explains (total variation): "
        "a personal head lets a client ignore the labels it never sees.",
        f"{SIGNIFICANT}; {OURS}, about Dirichlet with 1; Collins et al. 2021",
    ),
    Rule(
        "label skew", (("labels", ">=", 1), ("label_excess", "<", STRONG_LABELS), ("classes", ">=", 1)),
        {"calibration": 1.0, "finetune": 0.5},
        "Label frequencies differ mildly (excess {label_excess:.2f}): fine-tuning, or just correcting a shared model's "
        "class frequencies, may be enough.",
        f"{SIGNIFICANT}, excess >= {LABELS}; {OURS}; Saerens, Latinne, Decaestecker 2002",
    ),
    Rule(
        "shift that scaling removes", (("features", ">=", 1), ("feature_removed", ">=", 0.5)), {"norm": 2.0},
        "Inputs differ within labels (share {feature_share:.2f}), and scaling each client's columns by its own moments "
        "removes {feature_removed:.0%} of it: personal feature layers or normalisation can do that.",
        f"{SIGNIFICANT}, share >= {FEATURES}; {OURS}; Li et al. 2021 (FedBN)",
    ),
    Rule(
        "shift that scaling leaves", (("features", ">=", 1), ("feature_removed", "<", 0.5)),
        {"norm": 0.5, "regularised": 0.5},
        "Inputs differ within labels (share {feature_share:.2f}), and scaling columns removes only "
        "{feature_removed:.0%} of it: normalisation is not enough.",
        f"{SIGNIFICANT}, share >= {FEATURES}; {OURS}",
    ),
    Rule(
        "targets differ", (("concept", ">=", 1),),
        {"partial": 1.0, "regularised": 1.0, "global": -1.0},
        "Given the inputs, targets differ: correcting a shared model for each client saves {concept_gain:.1%} of the "
        "held-out loss.",
        f"p <= {LEVEL} by random signs, gain >= {CONCEPT}; {OURS}",
    ),
    Rule(
        "targets differ much", (("concept", ">=", 1), ("concept_gain", ">=", STRONG_CONCEPT)),
        {"regularised": 1.0, "partial": 0.5, "global": -1.0},
        "That is a lot: one model cannot serve everybody.",
        OURS,
    ),
    Rule(
        "groups that differ in inputs or targets", (("groups", ">=", 1),),
        {"clustered": 4.0},
        "Compared within labels, gradients fall into {cluster_count:.0f} groups (silhouette {silhouette:.2f}, "
        "{silhouette_chance:.2f} "
        "by chance), the smallest of {cluster_least:.0f} clients: a model for each group has its data and no conflict.",
        "silhouette >= 0.25: Kaufman, Rousseeuw 1990; p <= 0.01 against one Gaussian: Liu et al. 2008",
    ),
    Rule(
        "groups of labels", (("label_groups", ">=", 1),), {"clustered": 1.0, "mixing": 1.0},
        "Initial gradients fall into {cluster_count:.0f} groups (silhouette {silhouette:.2f}), but not "
        "within labels: a group's model would have less data for the same relation.",
        "silhouette >= 0.25: Kaufman, Rousseeuw 1990; p <= 0.01 against one Gaussian: Liu et al. 2008",
    ),
    Rule(
        "differences without groups",
        (("groups", "<", 1), ("label_groups", "<", 1), ("differ", ">=", 1), ("clients", ">=", 10)),
        {"mixing": 1.0, "clustered": -1.0},
        "Clients differ, but initial gradients form no groups beyond chance: clients may learn from those like them, "
        "not from a cluster.",
        "p > 0.01 against one Gaussian: Liu et al. 2008",
    ),
    Rule(
        "metadata", (("match_p", "<", LEVEL + 1e-9), ("match_explained", ">=", 0.1)), {"coldstart": 1.0},
        "The metadata explain {match_explained:.0%} of the differences between gradients: a newcomer's model can be "
        "chosen before it has labels.",
        f"{SIGNIFICANT}, times the number of columns; {OURS}",
    ),
    Rule(
        "together", (("pooling", ">=", RELEVANT), ("pooling_p", "<", 0.05)),
        {"finetune": 0.5, "global": 0.5, "local": -2.0},
        "Learning together saves {pooling:.0%} of the error that clients make alone.",
        f"p < 0.05, paired over clients; {OURS}",
    ),
    Rule(
        "alone", (("pooling", "<", -RELEVANT), ("alone_better", ">=", 0.5)),
        {"local": 0.5, "partial": 0.5, "regularised": 0.5, "global": -2.0},
        "A pooled model has {worse:.0%} more error than clients alone, and {alone_better:.0%} do better alone than "
        "with a corrected pooled model.",
        OURS,
    ),
    Rule(
        "most alone", (("pooling", "<", -RELEVANT), ("alone_better", ">=", 0.75)), {"local": 2.0},
        "Most clients do better alone, which favours personal models, if newcomers have enough rows, too.",
        OURS,
    ),
    Rule(
        "corrections help", (("personalising", ">=", RELEVANT), ("personalising_p", "<", 0.05)),
        {"finetune": 1.0, "partial": 0.5, "regularised": 0.5, "global": -1.0},
        "Correcting the pooled model for each client saves {personalising:.0%} of its error on validation data.",
        f"p < 0.05, paired over clients; {OURS}",
    ),
    Rule(
        "corrections do not help", (("personalising", "<", 0.01),), {"global": 1.0},
        "Correcting the pooled model for each client saves nothing on validation data ({personalising:.0%}).",
        OURS,
    ),
    Rule(
        "many small clients", (("median", "<", SMALL), ("clients", ">=", 20), ("differ", ">=", 1)),
        {"regularised": 1.0, "local": -1.0},
        "Half of the {clients:.0f} clients have fewer than {median:.0f} train rows: borrow strength from the others.",
        f"{OURS}; Lindley, Smith 1972",
    ),
    Rule(
        "poor data", (("poor", ">=", 1),), {"quality": 1.0},
        "Missing values or noise differ between clients by up to {poorness:.2f} of the values or of the variance: let "
        "the better data count more, or correct for it.",
        f"{SIGNIFICANT}, or reported by metadata; {OURS}",
    ),
    Rule(
        "unequal sizes", (("gini", ">=", UNEQUAL),), {"fair": 1.0},
        "Sizes are unequal (Gini {gini:.2f}): weighted by examples, the shared model serves the large clients first.",
        OURS,
    ),
    Rule(
        "outliers", (("outliers", ">=", 1),), {"robust": 1.0},
        "The gradients of {outliers:.0f} client(s) are far from all others: broken, or the ones that need a model of "
        "their own; the numbers cannot tell which.",
        "modified z-score above 3.5: Iglewicz, Hoaglin 1993",
    ),
)  # fmt: skip
