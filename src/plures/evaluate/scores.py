"""The one evaluation loop: every client's own predictor on its own examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.federation import SplitName, Task
from plures.run import Run
from plures.run.engine import Stack
from plures.signature import checked

Floats = NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Metric:
    """A number per client.

    Attributes:
        name: its name in results.
        title: its name in tables.
        higher: whether more is better.
        percent: whether tables show it times 100.
    """

    name: str
    title: str
    higher: bool
    percent: bool = False


METRICS: Mapping[str, tuple[Metric, ...]] = {
    "classification": (
        Metric("accuracy", "accuracy", True, True),
        Metric("loss", "cross-entropy", False),
        Metric("ece", "calibration error", False, True),
        Metric("brier", "Brier score", False),
    ),
    "regression": (
        Metric("rmse", "root mean squared error", False),
        Metric("mae", "mean absolute error", False),
        Metric("loss", "mean squared error", False),
    ),
}
"""Metrics of each kind of task; the first one is what methods are chosen by."""


def primary(task: Task) -> Metric:
    """The metric by which rounds and settings are chosen."""
    return METRICS[task.kind][0]


@brief
@dataclass(frozen=True)
class Scores:
    """Metrics of every client on one split.

    Attributes:
        clients: names.
        sizes: ``(clients,)`` number of examples scored.
        values: metric name to ``(clients,)``; NaN for a client without examples.
    """

    clients: tuple[str, ...]
    sizes: NDArray[np.int64]
    values: Mapping[str, Floats]


@checked
def score(run: Run, split: SplitName, deployed: Stack | None = None) -> Scores:
    """Score every client's own predictor on its own examples.

    Args:
        run: the run whose federation is scored.
        split: which examples.
        deployed: what each client predicts with, ``(clients, ...)``; default: what it would deploy now.
    """
    federation = run.federation
    order: list[int] = []
    parts: list[dict[str, Tensor]] = []
    for chunk in run.chunks(list(range(len(federation)))):
        stack = run.deployed(chunk) if deployed is None else rows_of(deployed, chunk)
        own: dict[str, Any] = {name: run.engine.whole(chunk, name) for name in run.bound.method.predictor.reads}
        total: dict[str, Tensor] = {}
        count = torch.zeros(len(chunk), dtype=torch.float64, device=federation.inputs.device)
        for inputs, targets, weight in run.engine.walk(chunk, split):
            count += weight.sum(1)
            outputs = run.engine.forward(stack, inputs, own, weight)
            chosen = run.engine.decisions(stack, outputs, weight) if federation.task.kind == "classification" else None
            for name, value in sums(federation.task, outputs, targets, weight, chosen).items():
                total[name] = total.get(name, 0.0) + value.to(torch.float64)
        order += chunk
        parts.append(metrics(federation.task, total, count))
    place = np.argsort(order)
    values = {name: torch.cat([part[name] for part in parts]).cpu().numpy()[place] for name in parts[0]}
    return Scores(federation.clients, federation.splits[split].sizes.numpy(), values)


def rows_of(stack: Stack, clients: list[int]) -> Stack:
    """Some clients' part of a stack."""
    return {slot: {path: t[clients] for path, t in leaves.items()} for slot, leaves in stack.items()}


def ece(confidence: Tensor, correct: Tensor, weight: Tensor) -> Tensor:
    """Expected calibration error with 10 equal-width bins, per client (Naeini, Cooper, Hauskrecht 2015).

    Args:
        confidence: ``(clients, examples)`` largest predicted probability.
        correct: ``(clients, examples)`` 1 where the prediction was right.
        weight: ``(clients, examples)`` 1 for an example, 0 for padding.
    """
    gaps = calibration_sums(confidence, correct, weight)
    return gaps.abs().sum(1) / weight.sum(1)


def calibration_sums(confidence: Tensor, correct: Tensor, weight: Tensor) -> Tensor:
    """``(clients, bins)`` sum of confidence minus correctness in each bin ``[lower, upper)``."""
    bins = (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(len(bins), BINS, dtype=confidence.dtype, device=bins.device).scatter_add_(
        1, bins, (confidence - correct) * weight
    )


def sums(
    task: Task, outputs: Tensor, targets: Tensor, weight: Tensor, decided: Tensor | None = None
) -> dict[str, Tensor]:
    """Per-client sums over a batch from which all metrics follow; each ``(clients, ...)``.

    Args:
        task: what is predicted.
        outputs: ``(clients, batch, outputs)``.
        targets: ``(clients, batch)`` or ``(clients, batch, outputs)``.
        weight: ``(clients, batch)`` 1 for an example, 0 for padding.
        decided: ``(clients, batch)`` predicted classes; default: those with the highest score.
    """
    finite = outputs.isfinite().all(-1)

    def total(values: Tensor) -> Tensor:
        return torch.where(weight > 0, values, 0.0).sum(1)

    if task.kind == "regression":
        error = torch.where(finite.unsqueeze(-1), outputs - targets, torch.inf)
        return {"square": total(error.square().sum(-1)), "absolute": total(error.abs().sum(-1))}
    logs = F.log_softmax(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, -1)
    chances = logs.exp()
    confidence, likeliest = chances.max(-1)
    chosen = likeliest if decided is None else decided
    correct = ((chosen == targets) & finite).to(logs.dtype)
    truth = F.one_hot(targets, outputs.shape[-1]).to(logs.dtype)
    return {
        "correct": total(correct),
        "nll": total(torch.where(finite, -(logs * truth).sum(-1), torch.inf)),
        "brier": total(torch.where(finite, (chances - truth).square().sum(-1), torch.inf)),
        "gaps": calibration_sums(confidence, correct, weight),
    }


def metrics(task: Task, total: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    """Metrics ``(clients,)`` from sums over all examples; NaN where a client has none."""
    mean = {name: value / count.view(-1, *(1,) * (value.dim() - 1)) for name, value in total.items()}
    if task.kind == "regression":
        return {
            "rmse": (mean["square"] / task.outputs).sqrt(),
            "mae": mean["absolute"] / task.outputs,
            "loss": mean["square"],
        }
    return {
        "accuracy": mean["correct"],
        "loss": mean["nll"],
        "ece": mean["gaps"].abs().sum(1),
        "brier": mean["brier"],
    }
