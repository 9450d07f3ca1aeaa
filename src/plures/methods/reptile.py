"""FedAvg as Reptile: a global model from which fine-tuning is fast."""

from dataclasses import dataclass

import torch

from plures.method import Cohort, Combine, Leaves, Method, Phase, Predict
from plures.methods.entry import entry, remark, require

ROUND = "round"


@dataclass(frozen=True)
class Slower:
    """The combined value; after some rounds, only a fraction of the way to it.

    Attributes:
        after: rounds of full steps.
        rate: the fraction in later rounds.
    """

    after: int
    rate: float

    def start(self, value: Leaves) -> Leaves:
        return {ROUND: torch.zeros(len(next(iter(value.values()))), dtype=torch.int64)}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        full = memory[ROUND] < self.after
        new = {}
        for k, value in old.items():
            early = full.to(value.device).view(-1, *(1,) * (value.dim() - 1)) | (self.rate == 1)
            new[k] = torch.where(early, combined[k], value + self.rate * (combined[k] - value))
        return new, {ROUND: memory[ROUND] + 1}


@entry(
    "Reptile",
    "meta-learning",
    "Jiang, Konečný, Rush, Kannan 2019, arXiv:1909.12488, Algorithm 2; Nichol, Achiam, Schulman 2018, arXiv:1803.02999",
    {"server_lr": (0.1, 0.3, 0.6)},
)
def reptile(after: int = 25, server_lr: float = 0.3, epochs: float = 3, lr: float | None = None) -> Method:
    """FedAvg, then rounds with a smaller server step (Reptile), then fine-tuning by every client.

    ``w <- w + server_lr (mean x_i - w)``, with weights by examples. The small steps seek a model near those that the
    clients reach from it in a few steps of fine-tuning; the shared model never sees the fine-tuning.
    Running statistics are averaged. Communication is that of FedAvg.

    Args:
        after: rounds of FedAvg before the smaller steps.
        server_lr: step of the server in the later rounds; 1 is FedAvg throughout.
        epochs: passes over the client's training data before predicting.
        lr: learning rate of these passes; default: the run's.
    """
    require(after >= 0 and epochs >= 0, f"reptile: after={after} and epochs={epochs} must not be negative")
    require(server_lr >= 0, f"reptile: server_lr={server_lr} must not be negative")
    remark(server_lr == 1, "reptile with server_lr=1 is fedavg with fine-tuning")
    tune = Phase(epochs=epochs, lr=lr, stream="adapt")
    return Method(combine=Combine(server=Slower(after, server_lr)), predict=Predict("model", adapt=(tune,)))
