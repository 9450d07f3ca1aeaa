"""Predictions: for raw rows, from a run in memory or on disk; and with targets, for metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation.inputs import Inputs, parts
from plures.metrics import Predictions
from plures.models import nested
from plures.run.engine import Engine, Stack
from plures.run.kernels import few
from plures.run.padding import Examples
from plures.tasks import Task


def predicted(
    engine: Engine, client: str, deployed: Stack, own: Examples, inputs: Tensor | Inputs
) -> tuple[Tensor, Tensor | None]:
    """Outputs ``(n, outputs)`` of a client's predictor, and the classes ``(n,)`` or labels that it decides for.

    Args:
        engine: the run's engine.
        client: the client's name, for messages.
        deployed: what it predicts with, ``(1, ...)`` each.
        own: the client's examples that its predictor reads, by split.
        inputs: ``(n, *features)`` as the network reads them.

    Returns:
        Class scores or log-odds, and decisions; or numbers in the target's own units, and ``None``.

    Raises:
        PluresError: if inputs are not finite, or if the model diverged.
    """
    federation = engine.federation
    if not all(bool(part.isfinite().all()) for part in parts(inputs)):
        raise PluresError(f"the inputs for client {client!r} hold a NaN or an infinite value: clean them")
    with torch.no_grad():
        outputs = engine.forward(deployed, nested.mapped(lambda t: t.unsqueeze(0), inputs), own, as_stored=True)
    if not bool(federation.task.expected(outputs).isfinite().all()):
        raise PluresError(f"the model of client {client!r} diverged in training: run again with a lower learning rate")
    decided = engine.decisions(deployed, outputs)[0] if federation.task.probable else None
    return federation.in_units(outputs[0]), decided


def said(task: Task, outputs: Tensor, targets: Tensor, weight: Tensor, decisions: Tensor | None = None) -> Predictions:
    """Predictions made from outputs, of several clients, or of one client without the leading dimension.

    Args:
        task: what is predicted.
        outputs: ``(clients, examples, outputs)``.
        targets: ``(clients, examples)`` or ``(clients, examples, outputs)``.
        weight: ``(clients, examples)`` how much an example counts, 0 for padding.
        decisions: ``(clients, examples, *target)`` the client's decisions; default: the task's.
    """
    places, wide = weight.dim() - 1, outputs.double()
    exact = targets.double() if targets.is_floating_point() else targets
    with few(outputs.device.type, outputs.shape[-1]):
        if task.joint and places:
            alone = zip(wide, exact, weight.double(), strict=True)
            losses = torch.stack([task.terms(*one) for one in alone])
        else:
            counted = weight.double().flatten()
            losses = task.terms(wide.flatten(0, places), exact.flatten(0, places), counted).view_as(weight)
        decided = task.decide(outputs) if decisions is None else decisions
        return Predictions(outputs, targets, weight, losses, decided, task.probabilities(wide))
