"""What a finished run tells of its clients: calibration, errors, clusters, what is personal, cold start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plures.evaluate.cold import Budget, with_labels
from plures.evaluate.personal import personal
from plures.evaluate.record import Calibration, ClientValues, Details, Mistake, Move
from plures.evaluate.scores import BINS, Scores, score
from plures.federation import Federation
from plures.run import Run
from plures.run.onboard import onboard

LABELS: tuple[int, ...] = (0, 1, 5, 20)
MOST_CLASSES = 20
MISTAKES = 3


def details(run: Run, unseen: Federation | None = None, everything: Scores | None = None) -> Details:
    """All that the report shows of a run in its present state.

    Args:
        run: a run at the round that validation chose.
        unseen: clients held out of its training.
        everything: test scores of the unseen clients with all their labelled examples, if they are known.
    """
    errors = {client: found for chunk in _chunks(run) for client, found in _errors(run, chunk)}
    ordered = [errors[place] for place in range(len(run.federation))]
    classes = run.federation.task.outputs if run.federation.task.kind == "classification" else 0
    calibration = None
    if classes:
        examples, confidence, correct = ([found[1][part].tolist() for found in ordered] for part in range(3))
        calibration = Calibration(
            examples=[[round(n) for n in row] for row in examples],
            confidence=[[round(x, 6) for x in row] for row in confidence],
            correct=[[round(n) for n in row] for row in correct],
        )
    return Details(
        calibration=calibration,
        confusion=[found[2].tolist() for found in ordered] if 0 < classes <= MOST_CLASSES else [],
        mistakes=[found[0] for found in ordered],
        personal=personal(run),
        clusters={block: rows.tolist() for block, rows in run.membership.items()},
        moves=[Move(round=r, block=block, client=client, cluster=to) for r, block, client, to in run.history()],
        cold={} if unseen is None else cold(run, unseen, everything),
    )


def cold(run: Run, unseen: Federation, everything: Scores | None = None) -> dict[str, ClientValues]:
    """Unseen clients' test scores by budget of labels; budgets that leave nobody fewer labels count as ``all``."""
    most = int((unseen.splits["train"].sizes + unseen.splits["validation"].sizes).max())
    budgets: list[Budget] = [budget for budget in LABELS if budget < most]
    found = {str(b): score(onboard(run, with_labels(unseen, b)), "test") for b in budgets}
    found["all"] = everything or score(onboard(run, unseen), "test")
    return {budget: values(scores) for budget, scores in found.items()}


def values(scores: Scores) -> ClientValues:
    """Scores as they are written."""
    plain = {name: [None if x != x else float(x) for x in column.tolist()] for name, column in scores.values.items()}
    return ClientValues(clients=list(scores.clients), sizes=scores.sizes.tolist(), metrics=plain)


def _chunks(run: Run) -> Iterator[list[int]]:
    yield from run.chunks(list(range(len(run.federation))))


def _errors(run: Run, chunk: list[int]) -> Iterator[tuple[int, tuple[list[Mistake], tuple[Tensor, ...], Tensor]]]:
    """Per client: its worst examples, its sums for calibration, its confusion matrix."""
    task, split = run.federation.task, run.federation.splits["test"]
    stack = run.deployed(chunk)
    own: dict[str, Any] = {name: run.engine.whole(chunk, name) for name in run.bound.method.predictor.reads}
    parts: list[tuple[Tensor, ...]] = []
    for inputs, targets, weight in run.engine.walk(chunk, "test"):
        outputs = run.engine.forward(stack, inputs, own, weight)
        decided = run.engine.decisions(stack, outputs, weight) if task.kind == "classification" else outputs
        parts.append((outputs.float().cpu(), decided.cpu(), targets.cpu(), weight.cpu()))
    for row, client in enumerate(chunk):
        kept = [tuple(part[row][w[row] > 0] for part in rest) for *rest, w in parts]
        if not kept or not sum(len(part[0]) for part in kept):
            nothing = torch.zeros(BINS, dtype=torch.float64)
            yield client, ([], (nothing,) * 3, torch.zeros(task.outputs, task.outputs, dtype=torch.int64))
            continue
        outputs, decided, targets = (torch.cat(tensors) for tensors in zip(*kept, strict=True))
        if task.kind == "classification":
            yield client, _classified(task.classes, split[client].cpu(), outputs, decided, targets)
        else:
            yield client, (_missed(split[client].cpu(), outputs, targets), (), torch.empty(0))


def _classified(
    classes: tuple[str, ...], rows: Tensor, outputs: Tensor, decided: Tensor, targets: Tensor
) -> tuple[list[Mistake], tuple[Tensor, ...], Tensor]:
    """One client's errors: ``outputs`` ``(n, classes)``, ``decided`` and ``targets`` ``(n,)``."""
    chances = outputs.double().softmax(-1).nan_to_num()
    confidence, correct = chances.max(-1).values, (decided == targets).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    sums = tuple(
        torch.zeros(BINS, dtype=torch.float64).scatter_add_(0, bins, part)
        for part in (torch.ones_like(confidence), confidence, correct)
    )
    most = outputs.shape[-1]
    confusion = torch.bincount(targets * most + decided, minlength=most * most).view(most, most)
    loss = -outputs.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    names = classes or tuple(map(str, range(most)))
    worst = [
        Mistake(
            row=int(rows[i]),
            loss=round(float(loss[i]), 6),
            truth=names[int(targets[i])],
            predicted=names[int(decided[i])],
            confidence=round(float(chances[i, decided[i]]), 6),
        )
        for i in loss.nan_to_num(torch.inf).argsort(descending=True, stable=True)[:MISTAKES].tolist()
    ]
    return worst, sums, confusion


def _missed(rows: Tensor, outputs: Tensor, targets: Tensor) -> list[Mistake]:
    """One client's greatest errors: ``outputs`` and ``targets`` ``(n, outputs)``."""
    loss = (outputs - targets).double().square().sum(-1)

    def told(values: Tensor) -> str:
        return ", ".join(f"{x:.4g}" for x in values.tolist())

    return [
        Mistake(row=int(rows[i]), loss=float(loss[i]), truth=told(targets[i]), predicted=told(outputs[i]))
        for i in loss.nan_to_num(torch.inf).argsort(descending=True, stable=True)[:MISTAKES].tolist()
    ]
