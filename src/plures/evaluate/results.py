"""Results as typed objects that are written as JSON and read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from plures.errors import PluresError, suggestion
from plures.evaluate.record import ClientValues, Details, Measured, Score
from plures.evaluate.record import Result as Result
from plures.evaluate.sample import sampling_width
from plures.evaluate.scores import Floats, Scores
from plures.evaluate.summary import Summary, harmed, interval, mean_known, paired_test, summarize
from plures.faults import read_json
from plures.methods.entry import BASELINES as BASELINES
from plures.metrics import CLASSIFICATION, REGRESSION, Metric
from plures.signature import checked
from plures.texts import csv_text


class ClientScores(ClientValues):
    """Metrics of every client on one split.

    ``None`` for a client without examples, whose site does not tell them, or for which the metric is undefined.

    Sites that do not tell how many examples there are have the size 0.
    """

    @classmethod
    def of(cls, scores: Scores) -> ClientScores:
        values = {k: [None if np.isnan(x) else float(x) for x in v] for k, v in scores.values.items()}
        return cls(clients=list(scores.clients), sizes=scores.sizes.tolist(), metrics=values)

    def values(self, metric: str) -> Floats:
        """``(clients,)`` with NaN for missing values."""
        return np.array([np.nan if x is None else x for x in self.metrics[metric]], dtype=np.float64)

    def undefined(self, metric: str) -> int:
        """How many clients have examples and no value all the same."""
        return int((np.isnan(self.values(metric)) & (np.array(self.sizes) > 0)).sum())

    def summary(self, metric: Metric | MetricCard) -> Summary:
        return summarize(self.values(metric.name), np.array(self.sizes), higher=metric.higher)


class Point(Result):
    """A point of a learning curve.

    Attributes:
        round: rounds finished.
        train_loss: mean task loss of the cohort in training in that round (:class:`~plures.run.RoundRecord`).
        objective: mean of what the cohort minimised; ``None`` in results from before it was kept, whose ``train_loss``
            is the objective.
        validation: mean over clients of the primary metric on validation data.
        bytes: bytes that travelled so far, all clients, both directions.
        seconds: seconds of training so far, without evaluation.
        visits: visits of clients so far, all clients.
        clients: the primary metric of every client on validation data; empty where it was not measured.
    """

    round: int
    train_loss: Measured
    objective: Score = None
    validation: Measured
    bytes: int
    seconds: float
    visits: int = 0
    clients: list[Score] = Field(default_factory=list)


class SeedResult(Result):
    """One finished run.

    Attributes:
        seed: root of its randomness.
        curve: points at which validation data were read.
        chosen_round: the round that validation chose.
        validation: scores at that round.
        test: scores at that round; the test data are read for it once.
        test_last: scores after the last round, for comparison; ``None`` where sites answer about test data once.
        unseen: scores of clients held out of training, each with the model it was given.
        details: calibration, errors, clusters, what is personal; ``None`` where the clients are elsewhere.
        never: names of the clients that no round until the chosen one drew. They are served as clients that come
            later, and count in every score.
    """

    seed: int
    curve: list[Point]
    chosen_round: int
    validation: ClientScores
    test: ClientScores
    test_last: ClientScores | None = None
    unseen: ClientScores | None = None
    details: Details | None = None
    never: list[str] = Field(default_factory=list)

    @property
    def reached(self) -> Point | None:
        """The point of the chosen round."""
        return next((point for point in self.curve if point.round == self.chosen_round), None)


class Trial(Result):
    """One setting tried in tuning, and the best validation score of its short run."""

    lr: float
    parameters: dict[str, Any]
    validation: Measured


class MethodResult(Result):
    """A method's settings, how they were found, and its runs.

    Attributes:
        name: name in the catalogue.
        title: name in tables.
        family: family in the catalogue.
        citation: where the method comes from.
        lr: learning rate, chosen on validation data.
        parameters: parameters; the main hyper-parameter is chosen on validation data.
        trials: what was tried.
        bytes_up: bytes that a client sends in a round.
        bytes_down: bytes that a client receives in a round.
        stored: bytes that a client keeps between rounds.
        flops: floating-point operations of one visit of a client of median size.
        seeds: the runs.
    """

    name: str
    title: str
    family: str
    citation: str
    lr: float
    parameters: dict[str, Any]
    trials: list[Trial]
    bytes_up: int
    bytes_down: int
    stored: int
    flops: int
    seeds: list[SeedResult]

    def per_client(self, metric: str) -> Floats:
        """``(clients,)`` test values, averaged over seeds."""
        runs = [seed.test.values(metric) for seed in self.seeds]
        return np.asarray(np.mean(runs, axis=0), dtype=np.float64)


class FederationCard(Result):
    """What the reader must know of the data.

    Attributes:
        name: name of the federation.
        kind: kind of task.
        classes: class names.
        clients: client names.
        sizes: split name to examples of every client.
        labels: per client, number of training examples of each class; empty for regression.
        metadata: column to one text per client.
        source: origin and licence.
        population: number of all clients, where those listed here are a random sample that was scored for all; else
            ``None``.
    """

    name: str
    kind: str
    classes: list[str]
    clients: list[str]
    sizes: dict[str, list[int]]
    labels: list[list[int]]
    metadata: dict[str, list[str]]
    source: str
    population: int | None = None

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each client."""
        return {name: place for place, name in enumerate(self.clients)}

    @property
    def trained(self) -> int:
        """How many clients the runs had, scored or not."""
        return self.population or len(self.clients)


class MetricCard(Result):
    """What the reader must know of a metric; see :class:`~plures.metrics.Metric`."""

    name: str
    title: str
    higher: bool
    percent: bool
    undefined: str = ""

    @classmethod
    def of(cls, metric: Metric) -> MetricCard:
        return cls(
            name=metric.name,
            title=metric.title,
            higher=metric.higher,
            percent=metric.percent,
            undefined=metric.undefined,
        )


class Row(Result):
    """A line of the table: one method over all clients and seeds.

    Attributes:
        mean: mean over clients and seeds, with the half width of its 95 % confidence interval over seeds.
        weighted: the same weighted by examples.
        std: standard deviation over clients of their means over seeds.
        worst: the client served worst.
        bottom: mean of the worst tenth.
        harmed_local: share of clients worse off than alone.
        harmed_fedavg: share of clients worse off than with FedAvg.
        p_value: paired test over clients against fine-tuned FedAvg.
        others: mean over clients of every other metric that is reported, by its name.
        undefined: clients with examples for which the metric is undefined; they are left out of everything else here.
        sampled_ci: half width of the 95 % confidence interval of the mean over all clients, where a random sample of
            them was scored; ``None`` where all were.
        last: mean after the last round.
        megabytes: what a client sent and received on average until the chosen round: all bytes that travelled in that
            run divided by its clients, drawn or not. Rounds after the chosen one do not count.
        visits: how often a client trained on average until the chosen round.
        unseen: mean over unseen clients.
        never: clients that no round until the chosen one drew, mean over seeds.
        diverged: clients whose model gives numbers that are not finite, with one of the seeds.
    """

    name: str
    title: str
    mean: float
    mean_ci: float | None
    weighted: float
    std: float
    worst: float
    bottom: float
    harmed_local: float
    harmed_fedavg: float
    p_value: float
    others: dict[str, float]
    last: float
    chosen_round: float
    megabytes: float
    visits: float
    unseen: float | None
    unseen_ci: float | None
    never: float = 0.0
    diverged: int = 0
    undefined: int = 0
    sampled_ci: float | None = None


class Comparison(Result):
    """Several methods on one federation, compared under the same rules.

    Attributes:
        federation: the data.
        metric: what is compared, and what rounds and settings were chosen by.
        metrics: all that is reported; empty in results of earlier versions.
        methods: the methods; the three baselines are always among them.
        settings: rounds, seeds, tuning and everything else that was set.
        environment: versions and machine.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> result = plures.compare(hospitals, ["apfl"], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> result.row("fedavg").worst, result.row("local").worst
        (0.0, 1.0)
        >>> plures.Comparison.model_validate_json(result.to_json()) == result
        True
    """

    federation: FederationCard
    metric: MetricCard
    methods: list[MethodResult]
    settings: dict[str, Any]
    environment: dict[str, str]
    metrics: list[MetricCard] = Field(default_factory=list)

    @property
    def others(self) -> list[MetricCard]:
        """The metrics that are reported beside the one that is compared."""
        known = [*self.metrics, *map(MetricCard.of, (*CLASSIFICATION, *REGRESSION))]
        names = [name for name in self.methods[0].seeds[0].test.metrics if name != self.metric.name]
        found = (next((card for card in known if card.name == name), None) for name in names)
        return [card for card in found if card is not None]

    def method(self, name: str) -> MethodResult:
        for method in self.methods:
            if method.name == name:
                return method
        raise PluresError(f"no method {name!r} in this comparison; {suggestion(name, [m.name for m in self.methods])}")

    def row(self, name: str) -> Row:
        """The line of one method."""
        method, metric = self.method(name), self.metric
        own = method.per_client(metric.name)
        over = summarize(own, np.array(method.seeds[0].test.sizes), higher=metric.higher)
        runs = [s.test.summary(metric) for s in method.seeds]
        mean, over_seeds = interval([s.mean for s in runs])
        population = self.federation.population
        width = None if population is None else sampling_width(own, population)
        local, fedavg, tuned = (self.method(b).per_client(metric.name) for b in BASELINES)
        unseen = [s.unseen.summary(metric).mean for s in method.seeds if s.unseen is not None]
        unseen_mean, unseen_width = interval(unseen) if unseen else (None, None)
        chosen = float(np.mean([s.chosen_round for s in method.seeds]))
        visits, sent = self._travelled(method)
        return Row(
            name=name,
            title=method.title,
            mean=mean,
            mean_ci=None if np.isnan(over_seeds) else over_seeds,
            weighted=float(np.mean([s.weighted for s in runs])),
            std=over.std,
            worst=over.worst,
            bottom=over.bottom,
            harmed_local=harmed(own, local, higher=metric.higher),
            harmed_fedavg=harmed(own, fedavg, higher=metric.higher),
            p_value=paired_test(own, tuned),
            others={other.name: mean_known(method.per_client(other.name)) for other in self.others},
            last=float(np.mean([s.test_last.summary(metric).mean if s.test_last else np.nan for s in method.seeds])),
            chosen_round=chosen,
            megabytes=sent / 1e6,
            visits=visits,
            unseen=unseen_mean,
            unseen_ci=None if unseen_width is None or np.isnan(unseen_width) else unseen_width,
            never=float(np.mean([len(seed.never) for seed in method.seeds])),
            diverged=int(np.isinf(method.per_client("loss")).sum()) if "loss" in method.seeds[0].test.metrics else 0,
            undefined=max(seed.test.undefined(metric.name) for seed in method.seeds),
            sampled_ci=None if width is None or np.isnan(width) else width,
        )

    def _travelled(self, method: MethodResult) -> tuple[float, float]:
        """Visits of a client and bytes that it sent and received until the chosen round, on average over all clients.

        Where a result does not tell the visits, every client is taken to have had one in each round.
        """
        clients = self.federation.trained
        known = [seed.reached for seed in method.seeds if seed.reached is not None and seed.reached.visits]
        if not known:
            rounds = float(np.mean([seed.chosen_round for seed in method.seeds]))
            return rounds, rounds * (method.bytes_up + method.bytes_down)
        visits, sent = ([p.visits for p in known], [p.bytes for p in known])
        return float(np.mean(visits)) / clients, float(np.mean(sent)) / clients

    def rows(self) -> list[Row]:
        """All lines, the baselines first, then the best first."""
        rows = [self.row(m.name) for m in self.methods]
        sign = -1 if self.metric.higher else 1
        first = {name: place for place, name in enumerate(BASELINES)}

        def order(row: Row) -> tuple[int, float]:
            value = math.inf if math.isnan(row.mean) else sign * row.mean
            return first.get(row.name, len(first)), 0.0 if row.name in first else value

        return sorted(rows, key=order)

    def among(self, clients: Sequence[str]) -> Comparison:
        """The same comparison, of some of its clients alone; unseen clients stay.

        What was measured of a whole run stays as it is: learning curves' means, loss, bytes, the map's axes.
        """
        people = self.methods[0].seeds[0].test.clients
        if missing := sorted(set(clients) - set(people)):
            near = suggestion(missing[0], people, "clients are")
            raise PluresError(f"no client {missing[0]!r} in this comparison; {near}")
        wanted = set(clients)
        places = [i for i, name in enumerate(people) if name in wanted]

        def part(scores: ClientScores | None) -> ClientScores | None:
            return scores and ClientScores(
                clients=[scores.clients[i] for i in places],
                sizes=[scores.sizes[i] for i in places],
                metrics={name: [values[i] for i in places] for name, values in scores.metrics.items()},
            )

        methods = []
        for method in self.methods:
            seeds = [
                seed.model_copy(
                    update={split: part(getattr(seed, split)) for split in ("validation", "test", "test_last")}
                )
                for seed in method.seeds
            ]
            methods.append(method.model_copy(update={"seeds": seeds}))
        return self.model_copy(update={"methods": methods})

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    @checked
    def from_json(cls, file: Path) -> Comparison:
        """Read a comparison that was written with :meth:`to_json`."""
        return read_json(cls, file, "a comparison", "run `plures compare` again, or read it with its own version")

    def to_csv(self) -> str:
        """One line per method, seed and client, with every metric on the test data at the chosen round."""
        names = list(self.methods[0].seeds[0].test.metrics)
        lines: list[list[object]] = [["method", "seed", "client", "unseen", "examples", "chosen_round", *names]]
        for method in self.methods:
            for run in method.seeds:
                for unseen, scores in ((False, run.test), (True, run.unseen)):
                    if scores is None:
                        continue
                    for i, client in enumerate(scores.clients):
                        cells = [scores.metrics[name][i] for name in names]
                        lines.append([method.name, run.seed, client, unseen, scores.sizes[i], run.chosen_round, *cells])
        return csv_text(lines)
