"""FedAvg, fine-tuned by every client: the baseline that a personalized method must beat."""

from plures.method import Method, Phase, Predict, head
from plures.methods.entry import entry, require


@entry(
    "FedAvg + fine-tuning",
    "baseline",
    "Jiang, Konečný, Rush, Kannan 2019, arXiv:1909.12488",
    {"epochs": (1, 3, 5)},
    {"steps": "epochs"},
)
def fedavg_ft(epochs: float = 3, steps: int | None = None, lr: float | None = None, head_only: bool = False) -> Method:
    """FedAvg; before predicting, each client trains a copy of the global model on its own data.

    The shared model never sees the fine-tuning.

    Args:
        epochs: passes over the client's training data.
        steps: gradient steps instead of epochs.
        lr: learning rate of the fine-tuning; default: the run's.
        head_only: fine-tune the head only.
    """
    require(epochs >= 0 and (steps or 0) >= 0, f"fedavg_ft: epochs={epochs}, steps={steps} must not be negative")
    tune = Phase(
        train=head if head_only else "model",
        epochs=epochs if steps is None else None,
        steps=steps,
        lr=lr,
        stream="adapt",
    )
    return Method(predict=Predict("model", adapt=(tune,)))
