"""Details of a finished run's clients: calibration, errors, clusters, what is personal, cold start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plures.evaluate.cold import Budget, with_labels
from plures.evaluate.inside import MOST_CLIENTS, Inside
from plures.evaluate.personal import personal
from plures.evaluate.record import Calibration, ClientValues, Details, Mistake, Move
from plures.evaluate.scores import Scores, score
from plures.federation import Federation
from plures.metrics.calibration import BINS, bins, stated
from plures.metrics.metric import Predictions
from plures.run import Run
from plures.run.onboard import onboard

LABELS: tuple[int, ...] = (0, 1, 5, 20)
MOST_CLASSES = 20
MISTAKES = 3


def details(
    run: Run,
    unseen: Federation | None = None,
    everything: Scores | None = None,
    errors: Errors | None = None,
    clients: Sequence[int] | None = None,
    inside: Inside | None = None,
) -> Details:
    """The details that the report shows about a run in its current state.

    With more than 5,000 clients, details of single clients are left out.

    Args:
        run: a run at the round that validation chose.
        unseen: clients held out of its training.
        everything: test scores of the unseen clients with all their labelled examples, if they are known already.
        errors: errors collected while scoring the test examples; default: score them again.
        clients: positions of the clients that were scored; default: all.
        inside: what is inside clients, if it was collected with the errors; default: score the test examples again.
    """
    told_of = list(range(len(run.federation)) if clients is None else sorted(clients))
    newcomers = {} if unseen is None else cold(run, unseen, everything)
    if len(told_of) > MOST_CLIENTS:
        return Details(cold=newcomers)
    if errors is None or inside is None:
        errors, inside = Errors(run), Inside(run)
        score(run, "test", onlooker=errors, collector=inside, clients=told_of)
    names = {run.federation.clients[i] for i in told_of}
    return Details(
        calibration=errors.calibration(),
        confusion=errors.confusion(),
        mistakes=errors.mistakes(),
        personal=personal(run, told_of),
        clusters={block: rows[told_of].tolist() for block, rows in run.membership.items()},
        moves=[
            Move(round=r, block=block, client=name, cluster=to) for r, block, name, to in run.history() if name in names
        ],
        cold=newcomers,
        **inside.found(),
    )


def cold(run: Run, unseen: Federation, everything: Scores | None = None) -> dict[str, ClientValues]:
    """Unseen clients' test scores by budget of labels. Budgets that limit no client are covered by ``all``."""
    most = int((unseen.splits["train"].sizes + unseen.splits["validation"].sizes).max())
    budgets: list[Budget] = [budget for budget in LABELS if budget < most]
    found = {str(b): score(onboard(run, with_labels(unseen, b)), "test") for b in budgets}
    found["all"] = everything or score(onboard(run, unseen), "test")
    return {budget: values(scores) for budget, scores in found.items()}


def values(scores: Scores) -> ClientValues:
    """Convert scores to a form that JSON can hold."""
    plain = {name: [None if x != x else float(x) for x in column.tolist()] for name, column in scores.values.items()}
    return ClientValues(clients=list(scores.clients), sizes=scores.sizes.tolist(), metrics=plain)


class Errors:
    """Collects the clients' worst test examples and their confidence, as an onlooker of :func:`score`.

    Args:
        run: the run that is scored.
    """

    def __init__(self, run: Run) -> None:
        self.task, self.split = run.federation.task, run.federation.splits["test"]
        self.classes = len(self.task.classes)
        self._mistakes: dict[int, list[Mistake]] = {}
        self._binned: dict[int, Tensor] = {}
        self._confusion: dict[int, Tensor] = {}

    def each(self, predictions: Predictions) -> tuple[Tensor, ...]:
        """Loss, truth and decision of every example; for classes, also probability, confidence and correctness."""
        always = predictions.losses, predictions.targets, predictions.decisions
        if not self.classes:
            return always
        chosen = predictions.chances.gather(-1, predictions.decisions.unsqueeze(-1)).squeeze(-1)
        return *always, chosen, *stated(predictions)

    def take(self, clients: list[int], weight: Tensor, *kept: Tensor) -> None:
        """Record the errors of some clients, unless there are too many clients for details."""
        if len(self._mistakes) + len(clients) > MOST_CLIENTS:
            return
        real, on_cpu = weight.cpu() > 0, [column.cpu() for column in kept]
        for place, client in enumerate(clients):
            loss, truth, decided, *sure = (column[place][real[place]] for column in on_cpu)
            worst = loss.nan_to_num(torch.inf).argsort(descending=True, stable=True)[:MISTAKES].tolist()
            rows = self.split[client].cpu()
            if not sure:
                self._mistakes[client] = [
                    Mistake(
                        row=int(rows[i]),
                        loss=float(loss[i]),
                        truth=self.task.says(truth[i]),
                        predicted=self.task.says(decided[i]),
                    )
                    for i in worst
                ]
                continue
            chosen, confidence, correct = sure
            self._mistakes[client] = [
                Mistake(
                    row=int(rows[i]),
                    loss=round(float(loss[i]), 6),
                    truth=self.task.says(truth[i]),
                    predicted=self.task.says(decided[i]),
                    confidence=round(float(chosen[i].nan_to_num()), 6),
                )
                for i in worst
            ]
            parts = torch.stack([torch.ones_like(confidence), confidence, correct])
            self._binned[client] = parts.new_zeros(3, BINS).index_add_(1, bins(confidence), parts)
            if self.classes <= MOST_CLASSES:
                pairs = torch.bincount(truth * self.classes + decided, minlength=self.classes**2)
                self._confusion[client] = pairs.view(self.classes, self.classes)

    def mistakes(self) -> list[list[Mistake]]:
        """Per client, the examples with the highest loss."""
        return [self._mistakes[client] for client in sorted(self._mistakes)]

    def calibration(self) -> Calibration | None:
        """Sums in bins of confidence; ``None`` without classes."""
        if not self._binned:
            return None
        examples, confidence, correct = torch.stack([self._binned[c] for c in sorted(self._binned)], 1).tolist()
        return Calibration(
            examples=[[round(n) for n in row] for row in examples],
            confidence=[[round(x, 6) for x in row] for row in confidence],
            correct=[[round(n) for n in row] for row in correct],
        )

    def confusion(self) -> list[list[list[int]]]:
        """Per client, counts of true class by decided class; empty without classes or with too many."""
        return [self._confusion[client].tolist() for client in sorted(self._confusion)]
