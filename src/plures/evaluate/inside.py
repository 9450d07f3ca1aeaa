"""What is inside clients: intervals over their test examples, subgroups, and all clients' examples together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.evaluate.record import BySubgroup, Score
from plures.evaluate.results import LEAST
from plures.evaluate.summary import mean_known
from plures.metrics import Metric
from plures.metrics.metric import Alone
from plures.run import Run
from plures.run.randomness import name_key

RESAMPLES = 500
"""How many times a client's test examples are drawn for its interval."""
BLOCK = 2_000_000
"""Most weights of drawn examples that are held at once."""
MOST_CLIENTS = 5_000
"""Most clients for which a result has details besides scores. With more, results would be too large to read."""


def interval_inside(
    metric: Metric, weight: Tensor, kept: Sequence[Tensor], name: str, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Bounds of the 95 % confidence interval of one client's metric over its examples, by the percentile bootstrap.

    Examples are drawn with replacement, as many as there are. Draws for which the metric is undefined are left out;
    with more than half of them undefined, fewer than two examples, or a metric of :func:`~plures.metrics.alone`, which
    takes long, there is no interval (NaN). The same client has the same draws in all runs.

    Args:
        metric: the metric.
        weight: ``(examples,)``, all positive.
        kept: what the metric needs of every example, ``(examples, ...)``.
        name: of the client.
        resamples: how many times examples are drawn.

    Examples:
        >>> from plures.metrics import CLASSIFICATION
        >>> interval_inside(CLASSIFICATION[0], torch.ones(2), [torch.tensor([True, False])], "a")
        (0.0, 1.0)
    """
    n = len(weight)
    if n < 2 or isinstance(metric.value, Alone):
        return math.nan, math.nan
    generator = np.random.default_rng((name_key("bootstrap inside"), name_key(name)))
    found = []
    at_once = max(1, BLOCK // max(1, sum(one.numel() for one in kept), n))
    for first in range(0, resamples, at_once):
        some = min(at_once, resamples - first)
        counts = torch.from_numpy(generator.multinomial(n, np.full(n, 1 / n), some)).to(weight)
        found.append(metric.computed(counts * weight, *(one.expand(some, *one.shape) for one in kept)))
    values = torch.cat(found).numpy()
    known = values[~np.isnan(values)]
    if len(known) * 2 < resamples:
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


class Inside:
    """Looks into clients while their test examples are scored (:func:`~plures.evaluate.score`).

    Args:
        run: the run that is scored.
        metrics: the metrics; default: all metrics of the federation.
    """

    def __init__(self, run: Run, metrics: Sequence[Metric] | None = None) -> None:
        data = run.federation
        self.names, self.split, self.groups = data.clients, data.splits["test"], data.subgroups
        self.metrics = data.metrics if metrics is None else tuple(metrics)
        self._intervals: dict[int, tuple[float, float]] = {}
        self._values: dict[str, dict[int, Tensor]] = {column: {} for column in self.groups}
        self._weights: list[Tensor] = []
        self._kept: list[list[tuple[Tensor, ...]]] = [[] for _ in self.metrics]
        self._codes: dict[str, list[Tensor]] = {column: [] for column in self.groups}
        self._many = False

    def take(self, clients: list[int], weight: Tensor, kept: Sequence[tuple[Tensor, ...]]) -> None:
        """Look into some clients.

        Args:
            clients: their positions.
            weight: ``(clients, examples)``, 0 for padding.
            kept: for each metric, what it needs of every example, ``(clients, examples, ...)``.
        """
        self._many |= len(self._intervals) + len(clients) > MOST_CLIENTS
        if self._many:
            return
        weight, kept = weight.cpu(), [tuple(one.cpu() for one in taken) for taken in kept]
        real = weight > 0
        for place, client in enumerate(clients):
            own = [one[place][real[place]] for one in kept[0]]
            self._intervals[client] = interval_inside(
                self.metrics[0], weight[place][real[place]], own, self.names[client]
            )
        self._weights.append(weight[real])
        for part, taken in zip(self._kept, kept, strict=True):
            part.append(tuple(one[real] for one in taken))
        for column, groups in self.groups.items():
            rows = torch.cat([self.split[client].cpu() for client in clients])
            self._codes[column].append(groups.codes[rows])
            codes = torch.full(weight.shape, -1)
            codes[real] = groups.codes[rows]
            found = []
            for group in range(len(groups.names)):
                inside = codes == group
                values = torch.stack(
                    [m.computed(weight * inside, *one) for m, one in zip(self.metrics, kept, strict=True)]
                )
                found.append(torch.where(inside.sum(1) < LEAST, torch.nan, values))
            by_client = torch.stack(found, 2)  # (metrics, clients, groups)
            self._values[column] |= {client: by_client[:, place] for place, client in enumerate(clients)}

    def found(self) -> dict[str, Any]:
        """Intervals, pooled metrics and subgroups, as fields of :class:`~plures.evaluate.record.Details`."""
        if self._many or not self._intervals:
            return {}
        bounds = [self._intervals[client] for client in sorted(self._intervals)]
        weight = torch.cat(self._weights)
        kept = [tuple(torch.cat(same) for same in zip(*part, strict=True)) for part in self._kept]
        everything = self._pooled(weight.unsqueeze(0), kept)
        return {
            "low": [_score(low) for low, _ in bounds],
            "high": [_score(high) for _, high in bounds],
            "pooled": {name: values[0] for name, values in everything.items()},
            "subgroups": {column: self._by(column, weight, kept) for column in self.groups},
        }

    def _pooled(self, weight: Tensor, kept: Sequence[tuple[Tensor, ...]]) -> dict[str, list[Score]]:
        """Metrics of all clients' examples with some weights, ``(sets, examples)``."""
        several = len(weight)
        return {
            metric.name: _scores(metric.computed(weight, *(one.expand(several, *one.shape) for one in taken)))
            for metric, taken in zip(self.metrics, kept, strict=True)
        }

    def _by(self, column: str, weight: Tensor, kept: Sequence[tuple[Tensor, ...]]) -> BySubgroup:
        codes, names = torch.cat(self._codes[column]), self.groups[column].names
        inside = codes == torch.arange(len(names)).unsqueeze(1)
        few = inside.sum(1) < LEAST
        pooled = {
            name: [None if small else value for value, small in zip(values, few.tolist(), strict=True)]
            for name, values in self._pooled(weight * inside, kept).items()
        }
        found = self._values[column]
        values = torch.stack([found[client] for client in sorted(found)], 1)  # (metrics, clients, groups)
        return BySubgroup(
            metrics={
                metric.name: [_score(mean_known(of.numpy())) for of in values[number].unbind(1)]
                for number, metric in enumerate(self.metrics)
            },
            pooled=pooled,
            clients=[_scores(of) for of in values[0].unbind(1)],
        )


def _score(value: float) -> Score:
    return None if math.isnan(value) else round(value, 6)


def _scores(values: Tensor) -> list[Score]:
    return [_score(float(value)) for value in values.tolist()]
