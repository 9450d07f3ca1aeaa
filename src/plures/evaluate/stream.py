"""Scores over a stream of experiences: how much a method forgets, and how well it still learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from plures.content import by_content
from plures.errors import PluresError
from plures.evaluate.scores import Floats, primary, score
from plures.federation import SplitName, Stream
from plures.method import Method
from plures.metrics import Metric
from plures.models import ModelFactory
from plures.run import Joint, Run, Training
from plures.run.stream import learn, on_experience


@by_content
@dataclass(frozen=True)
class StreamScores:
    """Scores of every client on every experience after every experience.

    Except for ``matrix``, all properties are per client, ``(clients,)``: take their mean, or the client that forgets
    most.

    Attributes:
        metric: the metric of the scores.
        experiences: names of the experiences, in the order of learning.
        clients: names of the clients.
        values: ``(learned, scored, clients)``: the score on each experience after learning each experience; NaN for a
            client without examples of an experience.
    """

    metric: Metric
    experiences: tuple[str, ...]
    clients: tuple[str, ...]
    values: Floats

    @property
    def matrix(self) -> Floats:
        """Mean over clients, ``(learned, scored)`` (Lopez-Paz, Ranzato 2017, section 2)."""
        return np.asarray(np.nanmean(self.values, axis=2))

    @property
    def final(self) -> Floats:
        """Mean score over all experiences after the last one."""
        return np.asarray(np.nanmean(self.values[-1], axis=0))

    @property
    def adaptation(self) -> Floats:
        """Score on each experience just after learning it, mean over experiences."""
        return np.asarray(np.nanmean(self._own, axis=0))

    @property
    def forgetting(self) -> Floats:
        """Drop from the best earlier score to the final one, mean over all experiences but the last.

        Chaudhry, Dokania, Ajanthan, Torr 2018, equation 3. Negative if later experiences improved earlier ones.
        """
        sign = 1 if self.metric.higher else -1
        best = (sign * self.values[:-1, :-1]).max(axis=0)
        return np.asarray(np.nanmean(best - sign * self.values[-1, :-1], axis=0))

    @property
    def backward_transfer(self) -> Floats:
        """Final score minus that just after learning, mean over all experiences but the last.

        Lopez-Paz, Ranzato 2017, equation 3.
        """
        sign = 1 if self.metric.higher else -1
        return np.asarray(np.nanmean(sign * (self.values[-1] - self._own)[:-1], axis=0))

    @property
    def _own(self) -> Floats:
        """Score on each experience just after learning it, ``(experiences, clients)``."""
        return np.stack([self.values[experience, experience] for experience in range(len(self.experiences))])


def follow(
    stream: Stream,
    model: nn.Module | ModelFactory,
    method: Method,
    training: Training | None = None,
    *,
    split: SplitName = "test",
    **options: Any,
) -> StreamScores:
    """Train a method over a stream (:func:`plures.run.stream.learn`) and score it on all experiences after each.

    A client predicts for all experiences with the model that it would deploy after the experience just learned. If the
    method adapts before predicting, it does so on data of that experience. No round is chosen: every experience ends
    with its last round.

    Args:
        stream: at least two experiences.
        model: a factory of modules, or a module.
        method: the method to run.
        training: local work; ``rounds`` is the number per experience.
        split: the examples that are scored; choose parameters on ``validation``.
        options: participation (everybody takes part if nothing travels), seed and execution.

    Raises:
        PluresError: if there is only one experience, or the predictor reads the client's own examples.
    """
    if len(stream) < 2:
        raise PluresError(f"stream {stream.name!r} has one experience; forgetting needs at least two")
    if method.predictor.reads:
        raise PluresError(
            "a predictor that reads the client's own examples has those of one experience only: it cannot be scored on "
            "others"
        )
    metric = primary(stream[0])
    rule = options.get("participation")
    options |= {} if rule is None else {"participation": Joint(rule)}
    learned = [scored(run, stream, split, metric) for run in learn(stream, model, method, training, **options)]
    return StreamScores(metric, stream.names, stream.clients, np.stack(learned))


def scored(run: Run, stream: Stream, split: SplitName, metric: Metric) -> Floats:
    """Scores of a run's clients on every experience, ``(experiences, clients)``, with what they would deploy now."""
    deployed = run.deployed(list(range(len(stream.clients))))
    return np.stack(
        [score(on_experience(run, experience), split, deployed).values[metric.name] for experience in stream]
    )
