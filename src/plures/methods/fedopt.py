"""FedOpt: adaptive steps at the server."""

from dataclasses import dataclass
from typing import Literal

import torch

from plures.method import Cohort, Combine, Leaves, Method
from plures.methods.entry import entry, require

Rule = Literal["adagrad", "adam", "yogi"]


@dataclass(frozen=True)
class Adaptive:
    """``w <- w + lr m / (sqrt(v) + tau)`` with running moments ``m`` and ``v`` of the mean change (Algorithm 2).

    As in the paper, moments have no bias correction, and ``v`` starts at ``tau^2``.

    Attributes:
        rule: how ``v`` follows the squared change.
        lr: step length.
        betas: decay of the first and second moment.
        tau: adaptivity; the smaller it is, the more alike are the steps of all coordinates.
    """

    rule: Rule
    lr: float
    betas: tuple[float, float]
    tau: float

    def start(self, value: Leaves) -> Leaves:
        first = {f"m:{k}": torch.zeros_like(t) for k, t in value.items()}
        return first | {f"v:{k}": torch.full_like(t, self.tau**2) for k, t in value.items()}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        (b1, b2), new, fresh = self.betas, {}, {}
        for k, value in old.items():
            change, v = combined[k] - value, memory[f"v:{k}"]
            square = change.square()
            m = b1 * memory[f"m:{k}"] + (1 - b1) * change
            grown = {
                "adagrad": v + square,
                "adam": b2 * v + (1 - b2) * square,
                "yogi": v - (1 - b2) * square * torch.sign(v - square),
            }
            v = grown[self.rule]
            new[k], fresh[f"m:{k}"], fresh[f"v:{k}"] = value + self.lr * m / (v.sqrt() + self.tau), m, v
        return new, {**memory, **fresh}


@entry(
    "FedOpt",
    "server optimizer",
    "Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, ICLR, Algorithm 2",
    {"server_lr": (0.003, 0.01, 0.03, 0.1)},
)
def fedopt(
    rule: Rule = "adam", server_lr: float = 0.03, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3
) -> Method:
    """FedAvg whose server adapts its step to each coordinate: FedAdagrad, FedAdam and FedYogi.

    The clients' mean change, weighted by examples, takes the place of the gradient. Running statistics are averaged.
    Communication is that of FedAvg.

    Args:
        rule: ``adagrad`` adds up squared changes, ``adam`` averages them, ``yogi`` follows them additively.
        server_lr: step of the server.
        betas: decay of the first and second moment (the paper's FedAdagrad has 0 for the first).
        tau: adaptivity, and the square root of the second moment's initial value.
    """
    require(server_lr >= 0 and tau > 0, f"fedopt: server_lr={server_lr} must be at least 0, tau={tau} positive")
    require(all(0 <= beta < 1 for beta in betas), f"fedopt: betas={betas} must lie in [0, 1)")
    return Method(combine=Combine(server=Adaptive(rule, server_lr, betas, tau)))
