"""Scores over a stream of tasks: how much a method forgets, and how well it still learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from plures.errors import PluresError
from plures.evaluate.scores import Floats, primary, score
from plures.federation import SplitName, Stream
from plures.method import Method
from plures.metrics import Metric
from plures.models import ModelFactory
from plures.run import Joint, Run, Training
from plures.run.stream import learn, on_task


@dataclass(frozen=True)
class StreamScores:
    """Scores of every client on every task after every task.

    Except for ``matrix``, all properties are per client, ``(clients,)``: take their mean, or the client that forgets
    most.

    Attributes:
        metric: the metric of the scores.
        tasks: names of the tasks, in the order of learning.
        clients: names of the clients.
        values: ``(learned, scored, clients)``: the score on each task after learning each task; NaN for a client
            without examples of a task.
    """

    metric: Metric
    tasks: tuple[str, ...]
    clients: tuple[str, ...]
    values: Floats

    @property
    def matrix(self) -> Floats:
        """Mean over clients, ``(learned, scored)`` (Lopez-Paz, Ranzato 2017, section 2)."""
        return np.asarray(np.nanmean(self.values, axis=2))

    @property
    def final(self) -> Floats:
        """Mean score over all tasks after the last one."""
        return np.asarray(np.nanmean(self.values[-1], axis=0))

    @property
    def adaptation(self) -> Floats:
        """Score on each task just after learning it, mean over tasks."""
        return np.asarray(np.nanmean(self._own, axis=0))

    @property
    def forgetting(self) -> Floats:
        """Drop from the best earlier score to the final one, mean over all tasks but the last.

        Chaudhry, Dokania, Ajanthan, Torr 2018, equation 3. Negative if later tasks improved earlier ones.
        """
        sign = 1 if self.metric.higher else -1
        best = (sign * self.values[:-1, :-1]).max(axis=0)
        return np.asarray(np.nanmean(best - sign * self.values[-1, :-1], axis=0))

    @property
    def backward_transfer(self) -> Floats:
        """Final score minus that just after learning, mean over all tasks but the last.

        Lopez-Paz, Ranzato 2017, equation 3.
        """
        sign = 1 if self.metric.higher else -1
        return np.asarray(np.nanmean(sign * (self.values[-1] - self._own)[:-1], axis=0))

    @property
    def _own(self) -> Floats:
        """Score on each task just after learning it, ``(tasks, clients)``."""
        return np.stack([self.values[task, task] for task in range(len(self.tasks))])


def follow(
    stream: Stream,
    model: nn.Module | ModelFactory,
    method: Method,
    training: Training | None = None,
    *,
    split: SplitName = "test",
    **options: Any,
) -> StreamScores:
    """Train a method over a stream (:func:`plures.run.stream.learn`) and score it on every task after every task.

    A client predicts for all tasks with the model that it would deploy after the task just learned. If the method
    adapts before predicting, it does so on data of that task. No round is chosen: every task ends with its last round.

    Args:
        stream: at least two tasks.
        model: a factory of modules, or a module.
        method: the method to run.
        training: local work; ``rounds`` is the number per task.
        split: the examples that are scored; choose parameters on ``validation``.
        options: participation (everybody takes part if nothing travels), seed and execution.

    Raises:
        PluresError: if there is only one task, or the predictor reads the client's own examples.
    """
    if len(stream) < 2:
        raise PluresError(f"stream {stream.name!r} has one task; forgetting needs at least two")
    if method.predictor.reads:
        raise PluresError(
            "a predictor that reads the client's own examples has those of one task only: it cannot be scored on others"
        )
    metric = primary(stream[0])
    rule = options.get("participation")
    options |= {} if rule is None else {"participation": Joint(rule)}
    learned = [scored(run, stream, split, metric) for run in learn(stream, model, method, training, **options)]
    return StreamScores(metric, stream.names, stream.clients, np.stack(learned))


def scored(run: Run, stream: Stream, split: SplitName, metric: Metric) -> Floats:
    """Scores of a run's clients on every task, ``(tasks, clients)``, with what they would deploy now."""
    deployed = run.deployed(list(range(len(stream.clients))))
    return np.stack([score(on_task(run, task), split, deployed).values[metric.name] for task in stream])
