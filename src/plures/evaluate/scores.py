"""Scores: the metrics of every client's own predictor on its own examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.evaluate.predictions import Reader, read
from plures.federation import Federation, SplitName
from plures.metrics import Metric
from plures.metrics.metric import PerExample, Predictions
from plures.run import Run
from plures.run.engine import Stack
from plures.signature import checked

Floats = NDArray[np.float64]


def primary(federation: Federation) -> Metric:
    """The metric by which rounds and settings are chosen."""
    return federation.metrics[0]


@brief
@by_content
@dataclass(frozen=True)
class Scores:
    """Metrics of all scored clients on one split.

    Attributes:
        clients: names of the clients.
        sizes: ``(clients,)`` numbers of examples scored.
        values: metric name to ``(clients,)``; NaN for a client without examples, or for which the metric is undefined.
    """

    clients: tuple[str, ...]
    sizes: NDArray[np.int64]
    values: Mapping[str, Floats]


class Onlooker(Protocol):
    """An observer of the evaluation that needs more than scores."""

    def each(self, predictions: Predictions) -> PerExample:
        """The values that it needs for every example, ``(clients, batch, ...)``."""

    def take(self, clients: list[int], weight: Tensor, *kept: Tensor) -> None:
        """Receive the values of ``each`` for all examples of some clients, ``(clients, examples, ...)``.

        ``weight`` is ``(clients, examples)``, 0 for padding.
        """


class Collector(Protocol):
    """Uses what the metrics need of every example once more, such as for subgroups."""

    def take(self, clients: list[int], weight: Tensor, kept: Sequence[tuple[Tensor, ...]]) -> None:
        """Receive, for all examples of some clients, what each of the metrics needs, ``(clients, examples, ...)``."""


@checked
def score(
    run: Run,
    split: SplitName,
    deployed: Stack | None = None,
    *,
    metrics: Sequence[Metric] | None = None,
    onlooker: Onlooker | None = None,
    collector: Collector | None = None,
    clients: Sequence[int] | None = None,
) -> Scores:
    """Score every client's own predictor on its own examples.

    Args:
        run: the run whose federation is scored.
        split: the examples to score.
        deployed: leaves of the clients' predictors, ``(clients, ...)``; default: those that they would deploy now.
        metrics: the metrics; default: all metrics of the federation.
        onlooker: observer of the same predictions.
        collector: gets what the metrics need of every example, too.
        clients: positions of the clients to score; default: all.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> training = plures.Training(rounds=5, optimizer=plures.SGD(0.5))
        >>> run = plures.Run(hospitals, plures.default_model(hospitals), plures.METHODS["local"](), training)
        >>> for record in run.rounds():
        ...     pass
        >>> plures.score(run, "test").values["accuracy"].tolist()
        [1.0, 1.0]
    """
    metrics = run.federation.metrics if metrics is None else metrics
    readers: list[Reader] = [metric.needed for metric in metrics] + ([] if onlooker is None else [onlooker.each])
    order: list[int] = []
    found: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    for chunk, weight, kept in read(run, split, readers, deployed, clients):
        order += chunk
        for metric, taken in zip(metrics, kept, strict=False):
            found[metric.name].append(metric.computed(weight, *taken))
        if onlooker is not None:
            onlooker.take(chunk, weight, *kept[-1])
        if collector is not None:
            collector.take(chunk, weight, kept[: len(metrics)])
    place = np.argsort(order)
    values = {name: torch.cat(parts).cpu().numpy()[place] for name, parts in found.items()}
    names, sizes = run.federation.clients, run.federation.splits[split].sizes.numpy()
    if clients is None:
        return Scores(names, sizes, values)
    chosen = sorted(clients)
    return Scores(tuple(names[i] for i in chosen), sizes[chosen], values)


@checked
def pooled(run: Run, split: SplitName, *, metrics: Sequence[Metric] | None = None) -> dict[str, float]:
    """Metrics of the rows of all clients together, each predicted by its own client's predictor.

    This is not the mean over clients: AUROC compares rows of different clients, F1 adds up all clients' counts. The
    outputs of different personal models cannot be ranked together, so the mean over clients comes first.

    Args:
        run: the run whose federation is scored.
        split: the examples to score.
        metrics: the metrics; default: all metrics of the federation.

    Examples:
        >>> data = plures.load("heart")
        >>> run = plures.Run(data, plures.default_model(data), plures.METHODS["fedavg"](), plures.Training(rounds=1))
        >>> _ = run.step()
        >>> accuracy, sizes = plures.score(run, "test").values["accuracy"], data.splits["test"].sizes.numpy()
        >>> bool(abs(pooled(run, "test")["accuracy"] - np.average(accuracy, weights=sizes)) < 1e-12)
        True
    """
    metrics = run.federation.metrics if metrics is None else metrics
    weights: list[Tensor] = []
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in metrics]
    for _, weight, kept in read(run, split, [metric.needed for metric in metrics]):
        counted = weight > 0
        weights.append(weight[counted])
        for part, taken in zip(parts, kept, strict=True):
            part.append(tuple(one[counted] for one in taken))
    one = torch.cat(weights).unsqueeze(0)
    return {
        metric.name: float(metric.computed(one, *(torch.cat(same).unsqueeze(0) for same in zip(*part, strict=True)))[0])
        for metric, part in zip(metrics, parts, strict=True)
    }
