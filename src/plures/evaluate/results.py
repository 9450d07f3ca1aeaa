"""Results as typed objects, which are stored as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from plures.errors import PluresError, suggestion
from plures.evaluate.record import ClientValues, Details, FleetCard, Measured, Score, Watched
from plures.evaluate.record import Result as Result
from plures.evaluate.sample import sampling_width
from plures.evaluate.scores import Floats, Scores
from plures.evaluate.summary import Summary, bootstrap, harmed, interval, mean_known, paired_test, summarize
from plures.extras import needed
from plures.faults import read_json
from plures.methods.entry import BASELINES as BASELINES
from plures.methods.entry import POOLED as POOLED
from plures.methods.entry import REFERENCES as REFERENCES
from plures.metrics import CLASSIFICATION, REGRESSION, Metric
from plures.notebook import notebook
from plures.privacy import Spent
from plures.signature import checked
from plures.texts import csv_text

LEAST = 10
"""Fewest test examples of a client, or of all clients together, by which a subgroup is judged."""


class ClientScores(ClientValues):
    """Metrics of every client on one split.

    A value is ``None`` if the client has no examples, its site does not report the metric, or the metric is undefined.
    Clients whose sites do not report their number of examples have size 0.
    """

    @classmethod
    def of(cls, scores: Scores) -> ClientScores:
        values = {k: [None if np.isnan(x) else float(x) for x in v] for k, v in scores.values.items()}
        return cls(clients=list(scores.clients), sizes=scores.sizes.tolist(), metrics=values)

    def values(self, metric: str) -> Floats:
        """A metric's values, ``(clients,)``, with NaN for missing ones."""
        return numbers(self.metrics[metric])

    def undefined(self, metric: str) -> int:
        """Number of clients that have examples but no value."""
        return int((np.isnan(self.values(metric)) & (np.array(self.sizes) > 0)).sum())

    def summary(self, metric: Metric | MetricCard) -> Summary:
        return summarize(self.values(metric.name), np.array(self.sizes), higher=metric.higher)


class Point(Result):
    """A point of a learning curve.

    Attributes:
        round: rounds finished.
        train_loss: mean task loss of the cohort in training in that round (:class:`~plures.run.RoundRecord`).
        objective: mean of the objective that the cohort minimised; ``None`` in results of earlier versions, where
            ``train_loss`` is the objective.
        validation: mean over clients of the primary metric on validation data.
        bytes: bytes sent so far by all clients in both directions.
        seconds: seconds of training so far, without evaluation.
        visits: number of visits of all clients so far.
        hours: simulated hours so far; ``None`` without a simulated fleet.
        joules: energy of all devices so far; ``None`` without a simulated fleet.
        clients: the primary metric of every client on validation data; empty if it was not measured.
    """

    round: int
    train_loss: Measured
    objective: Score = None
    validation: Measured
    bytes: int
    seconds: float
    visits: int = 0
    hours: float | None = None
    joules: float | None = None
    clients: list[Score] = Field(default_factory=list)


class PrivacyCard(Result):
    """What a run spent of differential privacy; see :class:`plures.privacy.Spent`, whose fields it has."""

    epsilon: Measured
    delta: float
    rounds: int
    unit: str
    neighbours: str
    accountant: str
    clip: Measured
    noise: float
    draws: str
    trust: str
    besides: str = ""

    @classmethod
    def of(cls, spent: Spent) -> PrivacyCard:
        return cls(**vars(spent))

    @property
    def spent(self) -> Spent:
        return Spent(**{name: getattr(self, name) for name in type(self).model_fields})


class SeedResult(Result):
    """One finished run.

    Attributes:
        seed: root of its randomness.
        curve: points at which validation data were read.
        chosen_round: the round that validation chose.
        validation: scores at that round.
        test: test scores at that round; the test data are read once for it.
        test_last: test scores after the last round, for comparison; ``None`` for real sites, which score test data
            once.
        unseen: scores of clients held out of training, each with the model that it was given.
        details: calibration, errors, clusters, personal parts; ``None`` for real sites.
        never: names of the clients that were not drawn in any round up to the chosen one. They are treated like clients
            that join later, and count in every score.
        watched: what was seen of every client, honest or not; ``None`` without attackers or uploads that are left out.
        privacy: what all its rounds spent, also those after the chosen one; ``None`` without differential privacy.
        fleet: what the devices of a simulated fleet did; ``None`` without one.
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
    watched: Watched | None = None
    privacy: PrivacyCard | None = None
    fleet: FleetCard | None = None

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
        lr: learning rate, chosen on validation data; None if the method takes no gradient steps.
        parameters: parameters; the main hyper-parameter is chosen on validation data.
        trials: the tuning trials.
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
    lr: float | None
    parameters: dict[str, Any]
    trials: list[Trial]
    bytes_up: int
    bytes_down: int
    stored: int
    flops: int
    seeds: list[SeedResult]

    def per_client(self, metric: str) -> Floats:
        """Test values averaged over seeds, ``(clients,)``."""
        runs = [seed.test.values(metric) for seed in self.seeds]
        return np.asarray(np.mean(runs, axis=0), dtype=np.float64)

    def by_subgroup(self, column: str, metric: str, *, pooled: bool = False) -> Floats:
        """A metric by the subgroups of a column, averaged over seeds, ``(subgroups,)``; NaN where it is not judged.

        Args:
            column: the column.
            metric: name of the metric.
            pooled: on all clients' examples together, instead of the mean over clients.
        """
        runs = [seed.details.subgroups[column] for seed in self.seeds if seed.details is not None]
        found = [numbers((run.pooled if pooled else run.metrics)[metric]) for run in runs]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)

    def pooled(self, metric: str) -> float:
        """A metric on the test examples of all clients together, averaged over seeds; NaN if it is not known."""
        runs = [seed.details for seed in self.seeds if seed.details is not None and metric in seed.details.pooled]
        return float(np.mean(numbers([run.pooled[metric] for run in runs]))) if runs else math.nan

    def inside(self) -> tuple[Floats, Floats]:
        """Bounds of the 95 % confidence interval over each client's test examples, ``(clients,)``, averaged over seeds.

        They are of the metric by which methods are compared; NaN where there is no interval.
        """
        runs = [seed.details for seed in self.seeds if seed.details is not None and seed.details.low]
        unknown = np.full(len(self.seeds[0].test.clients), np.nan)
        if len(runs) < len(self.seeds):
            return unknown, unknown
        low, high = ([numbers(getattr(run, side)) for run in runs] for side in ("low", "high"))
        return np.asarray(np.mean(low, axis=0)), np.asarray(np.mean(high, axis=0))


class SubgroupCard(Result):
    """The subgroups of one column.

    Attributes:
        names: of the subgroups.
        sizes: split name -> per subgroup, the number of examples of every client.
    """

    names: list[str]
    sizes: dict[str, list[list[int]]]

    def judged(self, least: int) -> list[int]:
        """Per subgroup, the number of clients with at least this many of its test examples."""
        return [sum(size >= least for size in sizes) for sizes in self.sizes["test"]]


class FederationCard(Result):
    """Facts about the data that a reader of results needs.

    Attributes:
        name: name of the federation.
        kind: kind of task.
        classes: class names.
        clients: client names.
        sizes: split name to examples of every client.
        labels: per client, number of training examples of each class; empty for regression.
        metadata: column to one text per client.
        source: origin and licence.
        population: number of all clients if those listed here are the random sample that was scored; otherwise
            ``None``.
        subgroups: column -> its subgroups.
        hostile: names of the clients that attack in this simulation; they are not listed among the clients.
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
    subgroups: dict[str, SubgroupCard] = Field(default_factory=dict)
    hostile: list[str] = Field(default_factory=list)

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each client."""
        return {name: place for place, name in enumerate(self.clients)}

    @property
    def trained(self) -> int:
        """Number of clients in the runs, scored or not."""
        return (self.population or len(self.clients)) + len(self.hostile)


class MetricCard(Result):
    """Facts about a metric that a reader of results needs; see :class:`~plures.metrics.Metric`.

    Attributes:
        named: whether somebody asked for it beside the one by which methods are compared.
    """

    name: str
    title: str
    higher: bool
    percent: bool
    undefined: str = ""
    named: bool = False

    @classmethod
    def of(cls, metric: Metric, *, named: bool = False) -> MetricCard:
        return cls(
            name=metric.name,
            title=metric.title,
            higher=metric.higher,
            percent=metric.percent,
            undefined=metric.undefined,
            named=named,
        )


class Gap(Result):
    """How differently a method serves the subgroups of one column, among those that are judged.

    Attributes:
        worst: name of the subgroup that is served worst; empty if none is judged.
        value: its value: the mean over the clients with enough of its test examples.
        gap: how much better the best-served subgroup's value is; NaN with fewer than two.
    """

    worst: str
    value: Measured
    gap: Measured


class Row(Result):
    """A line of the table: one method over all clients and seeds.

    Attributes:
        mean: mean over clients and seeds.
        mean_ci: half width of its 95 % confidence interval over seeds.
        clients_low: lower bound of the 95 % confidence interval of the mean over clients, by bootstrap: clients are
            drawn with replacement (:func:`~plures.evaluate.bootstrap`). NaN with fewer than two.
        clients_high: its upper bound.
        weighted: mean weighted by numbers of examples.
        std: standard deviation over clients of their means over seeds.
        worst: value of the worst client.
        bottom: mean of the worst tenth of the clients.
        harmed_local: share of clients worse off than with local training.
        harmed_fedavg: share of clients worse off than with FedAvg.
        p_value: paired test over clients against fine-tuned FedAvg.
        others: mean over clients of every other reported metric, by its name.
        undefined: number of clients with examples for which the metric is undefined; all other values leave them out.
        sampled_ci: half width of the 95 % confidence interval of the mean over all clients if a random sample of them
            was scored; ``None`` if all were.
        last: mean after the last round.
        chosen_round: the round that validation chose, mean over seeds.
        megabytes: traffic per client up to the chosen round, in MB: all bytes sent in the run, divided by the number of
            clients, drawn or not. Later rounds do not count.
        visits: visits per client up to the chosen round.
        unseen: mean over unseen clients.
        unseen_ci: half width of its 95 % confidence interval over seeds.
        never: number of clients not drawn in any round up to the chosen one, mean over seeds.
        diverged: number of clients whose model gave values that are not finite with one of the seeds.
        pooled: every reported metric on the test examples of all clients together, by its name; what is not known is
            left out.
        subgroups: column -> the worst-served subgroup and the gap.
        epsilon: the largest over seeds of what all rounds spent; ``None`` without differential privacy.
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
    clients_low: float = math.nan
    clients_high: float = math.nan
    pooled: dict[str, float] = Field(default_factory=dict)
    subgroups: dict[str, Gap] = Field(default_factory=dict)
    epsilon: float | None = None


class Against(Result):
    """What a comparison defends against, and the same methods without attackers and without the combination.

    The runs beside a method have its settings and seeds, and are scored on the same honest clients, so each differs in
    one thing alone.

    Attributes:
        attack: what attackers do; ``None`` without attackers.
        attackers: their names.
        first: the first round with forged uploads.
        knows: what forged uploads are computed from.
        combine: the robust combination of the methods; ``None`` for each method's own.
        uncombined: method -> why it does not take the combination.
        population: number of all clients, attackers included.
        cohort: number of clients in a round.
        stands: how many hostile uploads of a round the combination is made to stand; ``None`` without one, or if it
            promises no number.
        plain: the methods without attackers and combination, as far as they send anything.
        undefended: the methods under attack without the combination, as far as they take it.
    """

    attack: str | None
    attackers: list[str]
    first: int
    knows: str
    combine: str | None
    uncombined: dict[str, str]
    population: int
    cohort: int
    stands: int | None
    plain: list[MethodResult]
    undefended: list[MethodResult]


class Comparison(Result):
    """Several methods on one federation, compared under the same rules.

    Attributes:
        federation: the data.
        metric: the metric by which methods are compared, and rounds and settings were chosen.
        metrics: all reported metrics; empty in results of earlier versions.
        methods: the methods; ``local``, ``fedavg`` and ``fedavg_ft`` are always among them.
        settings: rounds, seeds, tuning and all other settings.
        environment: versions and machine.
        against: the attack and the robust combination, with the methods without them; ``None`` without either.

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
    against: Against | None = None

    @property
    def others(self) -> list[MetricCard]:
        """The metrics that are reported besides the one by which methods are compared."""
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
        local, fedavg, tuned = (self.method(b).per_client(metric.name) for b in REFERENCES)
        unseen = [s.unseen.summary(metric).mean for s in method.seeds if s.unseen is not None]
        unseen_mean, unseen_width = interval(unseen) if unseen else (None, None)
        chosen = float(np.mean([s.chosen_round for s in method.seeds]))
        visits, sent = self._travelled(method)
        low, high = bootstrap(own)
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
            clients_low=low,
            clients_high=high,
            pooled={
                one: value
                for one in (metric.name, *(other.name for other in self.others))
                if not math.isnan(value := method.pooled(one))
            },
            subgroups={column: self._gap(method, column) for column in self.federation.subgroups},
            epsilon=max((seed.privacy.epsilon for seed in method.seeds if seed.privacy is not None), default=None),
        )

    def _gap(self, method: MethodResult, column: str) -> Gap:
        """The worst-served subgroup of a column, and how far it is from the best-served."""
        values = method.by_subgroup(column, self.metric.name)
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            return Gap(worst="", value=math.nan, gap=math.nan)
        order = known[np.argsort(values[known] * (1 if self.metric.higher else -1), kind="stable")]
        with np.errstate(invalid="ignore"):
            gap = float(abs(values[order[-1]] - values[order[0]])) if len(known) > 1 else math.nan
        names = self.federation.subgroups[column].names
        return Gap(worst=names[int(order[0])], value=float(values[order[0]]), gap=gap)

    def _travelled(self, method: MethodResult) -> tuple[float, float]:
        """Visits per client, and bytes per client in both directions, up to the chosen round.

        If a result has no number of visits, every client is assumed to have had one in each round.
        """
        clients = self.federation.trained
        known = [seed.reached for seed in method.seeds if seed.reached is not None and seed.reached.visits]
        if not known:
            rounds = float(np.mean([seed.chosen_round for seed in method.seeds]))
            return rounds, rounds * (method.bytes_up + method.bytes_down)
        visits, sent = ([p.visits for p in known], [p.bytes for p in known])
        return float(np.mean(visits)) / clients, float(np.mean(sent)) / clients

    def rows(self) -> list[Row]:
        """All lines, the baselines first, with the pooled one last of them, then the best first."""
        rows = [self.row(m.name) for m in self.methods]
        sign = -1 if self.metric.higher else 1
        first = {name: place for place, name in enumerate((*BASELINES, POOLED))}

        def order(row: Row) -> tuple[int, float]:
            value = math.inf if math.isnan(row.mean) else sign * row.mean
            return first.get(row.name, len(first)), 0.0 if row.name in first else value

        return sorted(rows, key=order)

    def among(self, clients: Sequence[str]) -> Comparison:
        """The same comparison restricted to some of its clients; unseen clients stay.

        Values of whole runs do not change: learning curves' means, loss, bytes, the map's axes. Results by subgroups
        and of all examples together are left out.

        Raises:
            PluresError: if there is no client of a given name.
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

        def restricted(method: MethodResult) -> MethodResult:
            seeds = [
                seed.model_copy(
                    update={split: part(getattr(seed, split)) for split in ("validation", "test", "test_last")}
                    | {"details": _only(seed.details, places)}
                )
                for seed in method.seeds
            ]
            return method.model_copy(update={"seeds": seeds})

        methods, against = [restricted(method) for method in self.methods], self.against
        if against is not None:
            beside = {one: [restricted(method) for method in getattr(against, one)] for one in ("plain", "undefended")}
            against = against.model_copy(update=beside)
        card = self.federation.model_copy(update={"subgroups": {}})
        return self.model_copy(update={"methods": methods, "federation": card, "against": against})

    def _repr_html_(self) -> str:
        """The methods with their mean and worst client, for notebooks."""
        rows = [[row.title, *(f"{v:.4f}" for v in (row.mean, row.worst, row.harmed_local))] for row in self.rows()]
        head = ["method", f"mean {self.metric.title}", "worst client", "share harmed"]
        lines = ["Test data, at the round chosen on validation data; harmed: worse off than with local training."]
        return notebook(f"Comparison on {self.federation.name}", lines, head, rows)

    def frame(self, of: Literal["methods", "clients", "subgroups"] = "methods") -> Any:
        """The results as a pandas frame.

        Args:
            of: ``methods``: a line for each method, in the order of :meth:`rows`, indexed by its name. Columns are the
                fields of :class:`Row`; each other reported metric is a column of its name, a metric of all clients'
                examples together one named ``pooled_`` and its name, and of each column of subgroups there are
                ``COLUMN_worst``, ``COLUMN_value`` and ``COLUMN_gap``. ``clients``: a line for each method and client,
                with its value averaged over seeds and the bounds of its interval over test examples. ``subgroups``: a
                line for each method, column and subgroup, with the number of its test examples, the number of clients
                that have enough of them, and every metric: the mean over these clients, and, named ``pooled_`` and its
                name, that of all clients' examples together.

        Raises:
            PluresError: if pandas is missing.
        """
        frame = needed("pandas", "a frame", "frames").DataFrame
        if of == "methods":
            apart = {"others", "pooled", "subgroups"}
            lines = [row.model_dump(exclude=apart) | row.others | _flat(row) for row in self.rows()]
            return frame.from_records(lines).set_index("name")
        keys = ["method", "client"] if of == "clients" else ["method", "column", "subgroup"]
        found = self._client_lines() if of == "clients" else self._subgroup_lines()
        columns = [*keys, *(name for name in (found[0] if found else {}) if name not in keys)]
        return frame.from_records(found, columns=columns).set_index(keys)

    def _client_lines(self) -> list[dict[str, Any]]:
        """Every client under every method."""
        found = []
        for method in map(self.method, (row.name for row in self.rows())):
            test, (low, high) = method.seeds[0].test, method.inside()
            values = {name: method.per_client(name) for name in test.metrics}
            for place, client in enumerate(test.clients):
                own = {name: float(of[place]) for name, of in values.items()}
                bounds = {"low": float(low[place]), "high": float(high[place])}
                found.append({"method": method.name, "client": client, "examples": test.sizes[place], **bounds, **own})
        return found

    def _subgroup_lines(self) -> list[dict[str, Any]]:
        """Every subgroup under every method."""
        found = []
        names = [self.metric.name, *(other.name for other in self.others)]
        for method in map(self.method, (row.name for row in self.rows())):
            for column, card in self.federation.subgroups.items():
                own = {name: method.by_subgroup(column, name) for name in names}
                own |= {f"pooled_{name}": method.by_subgroup(column, name, pooled=True) for name in names}
                for place, group in enumerate(card.names):
                    found.append(
                        {
                            "method": method.name,
                            "column": column,
                            "subgroup": group,
                            "examples": sum(card.sizes["test"][place]),
                            "judged_clients": card.judged(LEAST)[place],
                            **{name: float(values[place]) for name, values in own.items()},
                        }
                    )
        return found

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    @checked
    def from_json(cls, file: Path) -> Comparison:
        """Read a comparison written with :meth:`to_json`.

        Raises:
            PluresError: if the file cannot be read or does not hold a comparison.
        """
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


def numbers(values: Sequence[Score]) -> Floats:
    """Values with NaN for missing ones."""
    return np.array([np.nan if x is None else x for x in values], dtype=np.float64)


def _only(details: Details | None, places: Sequence[int]) -> Details | None:
    """Details without what is of all clients together, and with the intervals of some."""
    if details is None:
        return None
    low, high = ([side[i] for i in places] if side else [] for side in (details.low, details.high))
    return details.model_copy(update={"low": low, "high": high, "pooled": {}, "subgroups": {}})


def _flat(row: Row) -> dict[str, Any]:
    """What a row has by metric and by column of subgroups, as columns."""
    pooled = {f"pooled_{name}": value for name, value in row.pooled.items()}
    return pooled | {f"{c}_{of}": value for c, gap in row.subgroups.items() for of, value in gap.model_dump().items()}
