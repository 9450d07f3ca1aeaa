"""Four hospitals and heart disease."""

from __future__ import annotations

from torch import Tensor, nn

from plures.cases.case import Case, Part
from plures.evaluate import Comparison
from plures.federation import SplitRule

SENSITIVITY = 0.9
METHOD = f"threshold(utility=specificity,recall={SENSITIVITY})"
STEPS = {
    "model": "plures.cases.hospitals:log_odds",
    "steps": 100,
    "batch_size": 4,
    "rounds": 15,
    "every": 15,
    "seeds": 5,
}
"""FLamby's protocol: fifteen rounds of a hundred batches of four, five seeds, nothing tuned here."""
ADAM, ADAGRAD, YOGI, ALONE = (
    f"plures.cases.flamby:{name}"
    for name in (
        "fedadam(server_lr=0.01)",
        "fedadagrad(server_lr=0.316228)",
        "fedyogi(server_lr=0.01)",
        "alone(lr=0.001,epochs=50)",
    )
)


class LogOdds(nn.Module):
    """Logistic regression with a single output, the log-odds of the second class, as FLamby's baseline."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        odds: Tensor = self.linear(inputs)
        return nn.functional.pad(odds, (1, 0))


def log_odds(features: tuple[int, ...]) -> nn.Module:
    """The network of FLamby's Fed-Heart-Disease."""
    return LogOdds(features[0])


def thresholds(comparison: Comparison) -> list[str]:
    """What a threshold for a stated sensitivity keeps on test patients, hospital by hospital."""
    name = next(method.name for method in comparison.methods if method.name.startswith("threshold"))
    found, fedavg = comparison.method(name), comparison.method("fedavg")
    lines = []
    for who, method in (("The common threshold", fedavg), ("Each hospital's own threshold", found)):
        pairs = zip(method.per_client("sensitivity"), method.per_client("specificity"), strict=True)
        cells = [
            f"{client} {100 * sensitivity:.0f} / {100 * specificity:.0f}"
            for client, (sensitivity, specificity) in zip(comparison.federation.clients, pairs, strict=True)
        ]
        lines.append(f"{who} has sensitivity / specificity, %: {', '.join(cells)}.")
    return [
        *lines,
        f"The own thresholds were chosen for a sensitivity of {100 * SENSITIVITY:.0f} % on validation data.",
    ]


hospitals = Case(
    name="hospitals",
    title="Four hospitals predict heart disease",
    question=(
        "Should our four hospitals learn together, does each need a model of its own, and at which threshold do we "
        "find 90 % of the ill?"
    ),
    parts=(
        Part(
            name="published",
            title="FLamby's benchmark, with its learning rates",
            data="fed_heart_disease",
            personal=(ALONE,),
            shared=("fedprox(mu=0.01)", "scaffold", ADAM, ADAGRAD, YOGI),
            options={
                **STEPS,
                "learning_rates": (0.001,),
                "tune_rounds": 1,
                "space": {
                    "fedavg_ft": {},
                    "fedadam server_lr=0.01": {"lr": (0.01,)},
                    "fedadagrad server_lr=0.316228": {"lr": (0.003162,)},
                    "fedyogi server_lr=0.01": {"lr": (0.003162,)},
                },
            },
            told=("balanced_accuracy", "auroc"),
            worth=0.01,
            published={
                "alone lr=0.001 epochs=50": (0.746, 0.746, 0.725, 0.702),
                "fedavg": (0.731, 0.719, 0.650, 0.640),
                "fedprox mu=0.01": (0.731, 0.719, 0.650, 0.640),
                "scaffold": (0.727, 0.719, 0.650, 0.640),
                "fedadam server_lr=0.01": (0.752, 0.746, 0.738, 0.667),
                "fedadagrad server_lr=0.316228": (0.760, 0.753, 0.738, 0.676),
                "fedyogi server_lr=0.01": (0.760, 0.753, 0.738, 0.676),
            },
        ),
        Part(
            name="personalized",
            title="FLamby's example of personalization, learning rate .00316, and further personal models",
            data="fed_heart_disease",
            personal=("fedavg_ft(steps=100)", "ditto", "apfl", "mrmtl", "pfedme", "ifca"),
            options={**STEPS, "learning_rates": (0.003162,), "tune_rounds": 0},
            told=("balanced_accuracy", "auroc"),
            worth=0.01,
            published_means={"fedavg": (0.718, 0.014), "fedavg_ft steps=100": (0.735, 0.008)},
        ),
        Part(
            name="own",
            title="All patients and columns, tuned, by AUROC",
            data="heart",
            personal=("ditto", "apfl", "mrmtl", "pfedme", "ifca", "prior_shift", METHOD),
            shared=("fedprox",),
            options={
                "model": "logistic",
                "metric": ["auroc", "sensitivity", "specificity"],
                "rounds": 30,
                "seeds": 3,
                "data_options": {"split": SplitRule(validation=0.25, test=0.25)},
            },
            told=("accuracy", "balanced_accuracy"),
            worth=0.01,
            notes=thresholds,
        ),
    ),
    advice=(
        "choose the metric before the method. Accuracy rewards knowing how frequent the disease is in a hospital, so a "
        "number of each hospital's own, or a constant, may win without finding one more ill patient. Rank patients "
        "with one model that all share, set each hospital's threshold on its own validation patients, and report "
        "sensitivity and specificity for each. Where nearly all patients are ill, as in Switzerland, neither a "
        "threshold nor AUROC can be trusted: collect healthy controls first."
    ),
)
