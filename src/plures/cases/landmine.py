"""Rare events at many places: mines in 29 fields."""

from __future__ import annotations

from plures.cases.case import Case, Part

landmine = Case(
    name="landmine",
    title="Mines in 29 fields, one signature in sixteen",
    question="Does a detector of rare events need to know where it stands, or is one detector for all fields enough?",
    parts=(
        Part(
            name="own",
            title="29 fields on two kinds of ground, by AUROC",
            data="landmine",
            personal=("ditto", "mrmtl", "apfl", "pfedme", "ifca", "metadata_clusters(column=terrain)"),
            options={
                "model": "logistic",
                "metric": ["auroc", "recall_at_fpr_5"],
                "rounds": 30,
                "every": 3,
                "seeds": 3,
                "learning_rates": (0.03, 0.1, 0.3),
            },
            told=("accuracy", "auprc", "balanced_accuracy", "recall_at_fpr_5"),
            worth=0.01,
        ),
    ),
    advice=(
        "do not look at accuracy, because calling everything clutter is nearly as accurate as any model. If you know a "
        "fact about places that changes what the signal looks like, such as the kind of ground, share one model among "
        "the places that are alike; a model of each place's own gains about as much only where it has events enough "
        "to learn from. Tell how many mines are found at the false alarms that you can afford, and expect it to vary "
        "between fields: each has only four to twelve mines among its test signatures."
    ),
)
