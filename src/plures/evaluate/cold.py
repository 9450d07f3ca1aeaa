"""Cold start: how good the models of held-out clients are with no, few, and all labelled examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.evaluate.scores import Floats, Scores, score
from plures.evaluate.summary import Summary, summarize
from plures.federation import Federation, Split, SplitName
from plures.federation.seeding import generator
from plures.metrics import Metric
from plures.run import Run
from plures.run.onboard import onboard

Budget = int | Literal["all"]


@dataclass(frozen=True)
class ColdStart:
    """Held-out clients' scores by the number of labelled examples that each may use.

    Attributes:
        metrics: the metrics measured; the first one is the default below.
        scores: test scores by budget of labels.
    """

    metrics: tuple[Metric, ...]
    scores: Mapping[Budget, Scores]

    def values(self, metric: str | None = None) -> Mapping[Budget, Floats]:
        """A metric of every client, ``(clients,)``, by budget; by default the first."""
        name = self._metric(metric).name
        return {budget: scores.values[name] for budget, scores in self.scores.items()}

    def summaries(self, metric: str | None = None) -> Mapping[Budget, Summary]:
        """A metric over clients, by budget."""
        higher = self._metric(metric).higher
        sizes = {budget: scores.sizes for budget, scores in self.scores.items()}
        return {b: summarize(v, sizes[b].astype(float), higher=higher) for b, v in self.values(metric).items()}

    def _metric(self, name: str | None) -> Metric:
        known = {metric.name: metric for metric in self.metrics}
        if name is not None and name not in known:
            raise PluresError(f"no metric {name!r} here; {suggestion(name, known, 'metrics are')}")
        return self.metrics[0] if name is None else known[name]


def cold_start_curve(
    run: Run, unseen: Federation, labels: Sequence[Budget] = (0, 1, 5, 20), seed: int = 0
) -> ColdStart:
    """Score held-out clients after onboarding with few labelled examples. Nothing is chosen by the scores.

    Args:
        run: a trained run, at the round that validation chose.
        unseen: clients held out of its training.
        labels: budgets of labelled examples per client; ``all`` for all. A client with fewer examples uses all of them.
        seed: seed of the choice of examples; a larger budget includes the examples of a smaller one.
    """
    scores = {b: score(onboard(run, with_labels(unseen, b, seed)), "test") for b in labels}
    return ColdStart(run.federation.metrics, scores)


def with_labels(federation: Federation, budget: Budget, seed: int = 0) -> Federation:
    """A federation in which every client keeps only a number of labelled examples, besides its test split.

    They are divided into training and validation in the same proportion as before, rounded in favour of training. Which
    ones are kept depends only on ``seed`` and the client's name and rows.

    Args:
        federation: the clients.
        budget: labelled examples per client; ``all`` for all.
        seed: seed of the choice.

    Raises:
        PluresError: if the budget is negative.
    """
    if budget == "all":
        return federation
    if budget < 0:
        raise PluresError(f"labels={budget}: a client cannot have a negative number of labelled examples")
    train, validation = federation.splits["train"], federation.splits["validation"]
    left: dict[SplitName, list[Tensor]] = {"train": [], "validation": []}
    for client, own, held in zip(federation.clients, train, validation, strict=True):
        total = len(own) + len(held)
        for_validation = min(budget, total) * len(held) // max(total, 1)
        left["validation"].append(some(held, for_validation, seed, "validation", client))
        left["train"].append(some(own, min(budget, total) - for_validation, seed, "train", client))
    return replace(federation, splits={**federation.splits, **{name: Split.of(rows) for name, rows in left.items()}})


def some(rows: Tensor, count: int, seed: int, split: str, client: str) -> Tensor:
    """Choose ``count`` of the rows, in their order; a larger choice includes a smaller one."""
    order = torch.from_numpy(generator(seed, "labels", split, client).permutation(len(rows)))
    return rows[order[:count].sort().values.to(rows.device)]
