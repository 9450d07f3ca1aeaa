"""Run a method to the end: rounds chosen on validation, test data read once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from plures.errors import PluresError, PluresWarning
from plures.evaluate.callback import About, Callback, Callbacks
from plures.evaluate.details import Errors, details, values
from plures.evaluate.devices import fleet_card
from plures.evaluate.inside import MOST_CLIENTS, Inside
from plures.evaluate.results import ClientScores, Point, PrivacyCard, SeedResult
from plures.evaluate.sample import among, honest_clients, sampled
from plures.evaluate.scores import Scores, primary, score
from plures.evaluate.summary import mean_known
from plures.evaluate.watched import watched
from plures.federation import Federation
from plures.files import check_file
from plures.metrics import Metric
from plures.metrics.metric import Predictions
from plures.run import Run, Threatening
from plures.run.checkpoint import Snapshot, restore, resume, save, snapshot
from plures.run.coordinator import Coordinator, RoundRecord
from plures.run.fingerprint import Fingerprint, of_run
from plures.run.interrupt import Interrupt
from plures.run.onboard import onboard
from plures.signature import arguments

Progress = Callable[[Point], None]
"""Called after each round with the point reached; its validation value is the last one measured.

An exception it raises ends the run. Use a callback for observers whose errors must not stop the run.
"""


R = TypeVar("R", bound=Coordinator[Any])


@dataclass(eq=False)
class Fit(Generic[R]):
    """A run in training, with its learning curve and best state so far.

    Attributes:
        run: the run, or the coordinator of one.
        curve: points at which validation data were read.
        best: state of the run at the best point on validation data, ``None`` before the first point.
        asked: positions of the clients that are scored; ``None`` for all.
        callbacks: observers of the run.
        patience: rounds without a better point after which the run ends; ``None`` for all its rounds.
        stopped: whether the run was ended because it had fallen behind others.
    """

    run: R
    curve: list[Point]
    best: Snapshot | None = None
    asked: list[int] | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    patience: int | None = None
    stopped: bool = False

    @property
    def ended(self) -> bool:
        """Whether no round is left or patience is exhausted. It depends only on the points, so also after resuming."""
        if self.stopped or self.run.round >= self.run.training.rounds:
            return True
        if self.patience is None or not self.curve:
            return False
        return self.curve[-1].round - self.chosen.round >= self.patience

    @property
    def chosen(self) -> Point:
        """The best point on validation data, the earliest on ties; the last one if nothing could be measured."""
        sign = primary(self.run.federation).sign
        measured = [point for point in self.curve if not math.isnan(point.validation)]
        return max(measured or self.curve[-1:], key=lambda point: (sign * point.validation, -point.round))

    def rounds(self) -> Iterator[int]:
        """The one loop over rounds, wherever the clients are: until the run has ended or a stop is requested.

        Yields:
            The number of rounds finished. The caller runs a round, records it, and saves it.
        """
        while not self.ended:
            yield self.run.round
            if self.callbacks.asked:
                raise KeyboardInterrupt

    def reached(self, point: Point, state: Callable[[], Snapshot]) -> None:
        """Record a point, and the state of the run there if it is the best so far."""
        self.curve.append(point)
        if self.chosen is point:
            self.best = state()

    def save(self, name: str, file: Path, question: Fingerprint | None = None, **kept: Any) -> None:
        """Write a checkpoint of the run with its curve and best state; ``kept`` are further JSON values."""
        curve = [point.model_dump(mode="json") for point in self.curve]
        save(self.run, name, file, self.best, question=question, curve=curve, **kept)

    def resume(self, name: str, file: Path, question: Fingerprint | None = None) -> dict[str, Any]:
        """Restore a checkpoint, and return its description, with the further values stored in it."""
        about, self.best = resume(self.run, name, file, question)
        self.curve = [Point(**point) for point in about["curve"]]
        return about


def fit(
    run: Run,
    name: str,
    *,
    every: int = 1,
    patience: int | None = None,
    behind: Callable[[Point], bool] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 10,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    stage: str = "run",
    settings: Mapping[str, Any] | None = None,
    question: Fingerprint | None = None,
    evaluate_clients: int | None = None,
    step: Callable[[Run], RoundRecord] | None = None,
    honest: Sequence[int] | None = None,
) -> Fit[Run]:
    """Train a run to its end, or resume from a checkpoint.

    Args:
        run: a run; if there is a checkpoint, its state is restored.
        name: name of the run in its checkpoint.
        every: rounds between readings of the validation data.
        patience: end the run when this many rounds have brought no better reading than the best one; default: run all
            rounds.
        behind: asked at every reading before the last round whether the run has fallen behind others and ends there.
        checkpoint: file that is written every ``checkpoint_every`` rounds and when Ctrl-C is pressed.
        checkpoint_every: rounds between checkpoints.
        progress: called after each round.
        callbacks: notified of the run's events; :func:`finish` notifies them of its end.
        stage: the purpose of the run, reported to callbacks.
        settings: the settings reported to callbacks; default: what the run itself knows.
        question: fingerprint of everything that the result depends on; a checkpoint with another one is refused.
            Default: :func:`~plures.run.fingerprint.of_run`, with ``every``, ``patience`` and ``evaluate_clients``.
        evaluate_clients: number of clients scored on validation and test data, drawn once at random; default: all.
        step: does a round instead of the run, such as one that another run did already
            (:class:`~plures.evaluate.recording.Recording`).
        honest: positions of the clients that may be scored; default: those that do not attack.

    Raises:
        PluresError: if the checkpoint belongs to another run; the message names the difference.
        KeyboardInterrupt: after the round in which Ctrl-C was pressed or a callback raised it, with the checkpoint
            written.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> training = plures.Training(rounds=5, optimizer=plures.SGD(0.5))
        >>> run = plures.Run(hospitals, plures.default_model(hospitals), plures.METHODS["local"](), training)
        >>> fitted = plures.fit(run, "alone")
        >>> fitted.chosen.validation, [point.round for point in fitted.curve]
        (1.0, [1, 2, 3, 4, 5])
    """
    given = arguments("fit", fit, run, name, every=every, checkpoint=checkpoint, checkpoint_every=checkpoint_every)
    checkpoint = given.arguments["checkpoint"]
    for what, number in (("every", every), ("checkpoint_every", checkpoint_every), ("rounds", run.training.rounds)):
        if number < 1:
            raise PluresError(f"{what}={number}: give at least 1")
    check_patience(patience)
    if checkpoint is not None:
        check_file(checkpoint)
    wanted = sampled(run.federation, evaluate_clients, judged(run) if honest is None else honest)
    fitted = Fit(run, [], asked=wanted, callbacks=Callbacks(callbacks), patience=patience)
    kept: dict[str, Any] = {"seconds": 0.0, "bytes": 0, "visits": 0}
    last = float("nan")
    if checkpoint is not None and question is None:
        also = among(evaluate_clients) | patience_fact(patience)
        question = of_run(run, name, every=every, **also)
    if checkpoint is not None and checkpoint.exists():
        about = fitted.resume(name, checkpoint, question)
        kept = {what: about[what] for what in (*kept, "hours", "joules") if what in about}
    metric = primary(run.federation)
    with closing(run.clients), fitted.callbacks.stopping(), Interrupt() as interrupt:
        fitted.callbacks.on_start(About.of(run, name, stage, settings))
        for _ in fitted.rounds():
            record = run.step() if step is None else step(run)
            kept["seconds"] += record.seconds
            kept["bytes"] += record.bytes_up + record.bytes_down
            kept["visits"] += len(record.cohort)
            if record.hours is not None and record.joules is not None:
                kept["hours"] = kept.get("hours", 0.0) + record.hours
                kept["joules"] = kept.get("joules", 0.0) + record.joules
            measured = run.round % every == 0 or run.round == run.training.rounds
            clients: list[float | None] = []
            if measured:
                scores = score(run, "validation", metrics=(metric,), clients=fitted.asked)
                last = mean_of_measured(scores, metric.name)
                many = len(scores.clients) > MOST_CLIENTS
                clients = [] if many else values(scores).metrics[metric.name]
            point = Point(
                round=run.round,
                train_loss=record.loss,
                objective=None if math.isnan(record.objective) else record.objective,
                validation=last,
                clients=clients,
                **kept,
            )
            if measured:
                fitted.reached(point, lambda: snapshot(run))
            fitted.callbacks.on_round(record)
            if measured:
                fitted.callbacks.on_point(point)
            if progress is not None:
                progress(point)
            if behind is not None and measured and not fitted.ended:
                fitted.stopped = behind(point)
            fitted.callbacks.asked |= interrupt.asked
            due = fitted.callbacks.asked or (run.round % checkpoint_every == 0 and not fitted.ended)
            if checkpoint is not None and due:
                fitted.save(name, checkpoint, question, **kept)
    return fitted


def judged(run: Run) -> list[int] | None:
    """Positions of the clients that do not attack; ``None`` for all."""
    hostile = [] if run.threat is None else run.threat.hostile(run.federation.clients)
    return honest_clients(len(run.federation), hostile)


def check_patience(patience: int | None) -> None:
    """Refuse a patience that would end a run before its first round."""
    if patience is not None and patience < 1:
        raise PluresError(f"patience={patience}: give at least 1 round, or None to run all rounds")


def patience_fact(patience: int | None) -> dict[str, Any]:
    """A run's patience as an entry of its fingerprint; empty if all rounds are run."""
    return {} if patience is None else {"patience": patience}


def mean_of_measured(scores: Scores, metric: str) -> float:
    """Mean over the clients with a value; NaN if there are none."""
    return mean_known(scores.values[metric])


class Diverged:
    """Collects clients whose models give outputs that are not finite, as an onlooker of :func:`score`.

    Args:
        names: names of all clients.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._found: list[int] = []

    def each(self, predictions: Predictions) -> Tensor:
        """Whether the outputs are finite."""
        return predictions.finite

    def take(self, clients: list[int], weight: Tensor, *kept: Tensor) -> None:
        """Record the clients that have an example whose outputs are not finite."""
        lost = ((weight > 0) & ~kept[0]).any(1).tolist()
        self._found += [client for client, one in zip(clients, lost, strict=True) if one]

    def warn(self) -> None:
        """Warn about these clients, whose examples count as wrong."""
        lost = [self.names[client] for client in sorted(self._found)]
        if lost:
            warnings.warn(
                f"the models of {len(lost)} clients diverged ({', '.join(lost[:5])}): use a smaller learning rate",
                PluresWarning,
                stacklevel=4,
            )


def warn_of_undefined(scores: Scores, metric: Metric) -> None:
    """Warn about clients that have validation examples but no value of the metric by which the round was chosen."""
    asked = scores.sizes > 0
    lacking = int((np.isnan(scores.values[metric.name]) & asked).sum())
    if not lacking:
        return
    why = f" {metric.undefined}".rstrip()
    if lacking == asked.sum():
        message = f"{metric.title} is undefined for every client on validation data{why}, so the last round was chosen"
        remedy = "choose another metric, or give clients more validation examples"
    else:
        message = f"{metric.title} is undefined for {lacking} of {len(scores.clients)} clients on validation data{why}"
        remedy = "the round was chosen by the others"
    warnings.warn(f"{message}: {remedy}", PluresWarning, stacklevel=4)


def finish(
    fitted: Fit[Run], seed: int, unseen: Federation | None = None, threat: Threatening | None = None
) -> SeedResult:
    """Read the test data: once for the round that validation chose, and once for the last round, for comparison.

    The run is left in the state of the chosen round.

    Args:
        fitted: a finished fit.
        seed: the run's seed, for the record.
        unseen: clients held out of training, which are given a model now.
        threat: hostile clients whose backdoor is tried on the models; default: those of the run.

    Examples:
        >>> from plures.evaluate import finish
        >>> heart = plures.load("heart")
        >>> run = plures.Run(heart, plures.default_model(heart), plures.METHODS["fedper"](), plures.Training(rounds=2))
        >>> result = finish(plures.fit(run, "fedper"), seed=0)
        >>> result.test.clients, result.test.sizes
        (['cleveland', 'hungarian', 'switzerland', 'va'], [76, 74, 31, 50])
    """
    with fitted.callbacks.stopping():
        result = tested(fitted, seed, unseen, threat)
    fitted.callbacks.on_end(result)
    return result


def tested(fitted: Fit[Run], seed: int, unseen: Federation | None, threat: Threatening | None) -> SeedResult:
    """The result of :func:`finish`, without callbacks."""
    run, asked = fitted.run, fitted.asked
    errors, inside = Errors(run), Inside(run)
    if fitted.best is not None and fitted.chosen.round != run.round:
        last = ClientScores.of(score(run, "test", clients=asked))
        restore(run, fitted.best)
        test = ClientScores.of(score(run, "test", onlooker=errors, collector=inside, clients=asked))
    else:
        last = test = ClientScores.of(score(run, "test", onlooker=errors, collector=inside, clients=asked))
    diverged = Diverged(run.federation.clients)
    validation = score(run, "validation", onlooker=diverged, clients=asked)
    diverged.warn()
    warn_of_undefined(validation, primary(run.federation))
    newcomers = known = None
    if unseen is not None:
        known = score(onboard(run, unseen), "test")
        newcomers = ClientScores.of(known)
    plan = run.origin.plan
    never = run.never.tolist()
    never = never if asked is None else sorted(set(never) & set(asked))
    return SeedResult(
        seed=seed,
        curve=fitted.curve,
        chosen_round=run.round,
        validation=ClientScores.of(validation),
        test=test,
        test_last=last,
        unseen=newcomers,
        details=details(run, unseen, known, errors, asked, inside),
        never=[run.federation.clients[i] for i in never],
        watched=watched(run, threat or run.threat),
        privacy=None if plan is None else PrivacyCard.of(plan.spent(fitted.curve[-1].round)),
        fleet=fleet_card(run),
    )
