"""Number formats, and the columns of every table of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plures.evaluate.results import LEAST, POOLED, Comparison, MetricCard, Row
from plures.evaluate.summary import RESAMPLES

OTHER, WORST, GAP = "metric:", "worst:", "gap:"
MISSING, INFINITE = "\N{EN DASH}", "\N{INFINITY}"
DIGITS = 3
MOST_DECIMALS = 8
HUGE = 1e7
"""From this size on, a number is shown with three digits and an exponent."""


def known(value: float | None) -> float | None:
    """The value, or None if it is missing or not a number."""
    return None if value is None or not math.isfinite(value) else value


def decimals(scale: float) -> int:
    """Decimals that show three significant digits of a number of this size."""
    return min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(abs(scale))))) if scale else DIGITS


def infinite(value: float | None) -> str:
    """Text of a non-finite number, as after a divergence; empty for others."""
    return "" if value is None or not math.isinf(value) else INFINITE if value > 0 else f"-{INFINITE}"


def significant(value: float | None) -> str:
    """A number with three significant digits."""
    if odd := infinite(value):
        return odd
    value = known(value)
    return MISSING if value is None else "0" if value == 0 else f"{value:.{decimals(value)}f}"


def megabytes(value: float) -> str:
    """Megabytes with three significant digits, down to a kilobyte."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}" if 0 < value < 0.1 else significant(value)


def probability(p: float) -> str:
    """A p-value for use in a sentence."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


def share(value: float | None) -> str:
    """A share of the clients as an integer percentage."""
    value = known(value)
    return MISSING if value is None else f"{100 * value:.0f} %"


@dataclass(frozen=True)
class Number:
    """The number format of a metric: the same decimals everywhere.

    Attributes:
        percent: whether values are shown times 100.
        decimals: decimals shown.
    """

    percent: bool
    decimals: int = 1

    @classmethod
    def of(cls, comparison: Comparison, rows: list[Row]) -> Number:
        """The number format of the compared metric."""
        return cls.among(comparison.metric, [row.mean for row in rows])

    @classmethod
    def among(cls, metric: MetricCard, means: Sequence[float]) -> Number:
        """Percent with one decimal; otherwise three significant digits of the smallest mean."""
        if metric.percent:
            return cls(True)
        sizes = [abs(mean) for mean in means if known(mean)]
        return cls(False, decimals(min(sizes)) if sizes else DIGITS)

    def __call__(self, value: float | None) -> str:
        if odd := infinite(value):
            return odd
        value = known(value)
        if value is None:
            return MISSING
        shown = value * (100 if self.percent else 1)
        return f"{shown:.2e}" if abs(shown) >= HUGE else f"{shown:.{self.decimals}f}"

    def between(self, value: float | None, width: float | None) -> str:
        """A mean with the half width of its interval, if any; a width is never rounded to zero."""
        width = known(width)
        if value is None or width is None or not math.isfinite(value):
            return self(value)
        least = 10**-self.decimals / (100 if self.percent else 1)
        return f"{self(value)} ± {'<' + self(least) if 0 < width < least / 2 else self(width)}"

    def span(self, low: float, high: float) -> str:
        """The two bounds of an interval."""
        return MISSING if known(low) is None or known(high) is None else f"{self(low)} to {self(high)}"

    def unit(self) -> str:
        return " %" if self.percent else ""

    def distance(self, difference: float) -> str:
        """The size of a difference, as text."""
        least = 10**-self.decimals
        size = abs(difference) * (100 if self.percent else 1)
        text = f"{size:.{self.decimals}f}" if size >= least / 2 else f"less than {least:.{self.decimals}f}"
        return f"{text} points" if self.percent else text


@dataclass(frozen=True)
class Column:
    """A column of the table of methods.

    Attributes:
        key: the attribute of a row that it shows; of another metric than the compared one, its name after ``OTHER``; of
            subgroups, their column after ``WORST`` or ``GAP``.
        heading: its heading.
        detail: a second line of the heading.
        meaning: one line for the glossary.
        write: formats its value.
        rising: whether the best value is the smallest one.
        named: whether it shows a metric that somebody asked for; such a column is the last to be dropped.
        read: its value, if that is not an attribute of a row.
    """

    key: str
    heading: str
    detail: str
    meaning: str
    write: Callable[[Row], str]
    rising: bool = True
    named: bool = False
    read: Callable[[Row], float | None] | None = None

    def value(self, row: Row) -> float | None:
        value: float | None = getattr(row, self.key) if self.read is None else self.read(row)
        return known(value)


def columns(comparison: Comparison, rows: list[Row]) -> list[Column]:
    """The columns after the method's title, in order."""
    number = Number.of(comparison, rows)
    seeds = max(len(m.seeds) for m in comparison.methods)
    down = not comparison.metric.higher
    metric = comparison.metric.title
    over = f"Student's 95 % confidence interval over {seeds} seeds" if seeds > 1 else "one seed, so no interval"
    found = [
        Column(
            "mean",
            "mean",
            "± 95 % CI" if seeds > 1 else "one seed",
            f"{metric} averaged over clients with equal weight, then over seeds; {over}.",
            lambda row: number.between(row.mean, row.mean_ci),
            down,
        ),
        Column(
            "clients_low",
            "95 % CI",
            "clients",
            f"95 % confidence interval of the mean {metric} over clients, by bootstrap: percentiles of the means of "
            f"{RESAMPLES:,} draws of the clients with replacement. It says how far the mean may lie from that of other "
            "clients like these; for fewer than about ten clients it is too short.",
            lambda row: number.span(row.clients_low, row.clients_high),
            down,
        ),
        Column(
            "weighted",
            "weighted",
            "by size",
            f"{metric} averaged over clients, weighted by test examples.",
            lambda row: number(row.weighted),
            down,
        ),
        Column(
            "std",
            "std",
            "clients",
            "standard deviation over clients.",
            lambda row: number(row.std),
        ),
        Column(
            "worst",
            "worst",
            "client",
            f"{metric} of the worst-served client.",
            lambda row: number(row.worst),
            down,
        ),
        Column(
            "bottom",
            "bottom",
            "10 %",
            f"mean {metric} of the worst tenth of the clients (at least one client).",
            lambda row: number(row.bottom),
            down,
        ),
        Column(
            "harmed_local",
            "harmed",
            "vs local",
            "share of clients that are worse off than if each had trained alone, with a visit of every client in each "
            "round, however few clients the other methods draw.",
            lambda row: MISSING if row.name == "local" else share(row.harmed_local),
        ),
        Column(
            "harmed_fedavg",
            "harmed",
            "vs FedAvg",
            "share of clients that are worse off than with the one global model of FedAvg.",
            lambda row: MISSING if row.name == "fedavg" else share(row.harmed_fedavg),
        ),
        *(column for name in comparison.federation.subgroups for column in _subgroups(comparison, name, number)),
        *(_other(comparison, card, rows) for card in comparison.others),
        Column(
            "pooled",
            "pooled",
            "all rows",
            f"{metric} of the test examples of all clients together, each predicted by its own client's model. Scores "
            "of different personal models cannot be ranked together, so the mean over clients comes first.",
            lambda row: number(row.pooled.get(comparison.metric.name)),
            down,
            read=lambda row: row.pooled.get(comparison.metric.name),
        ),
        Column(
            "epsilon",
            "epsilon",
            "spent",
            "what all rounds of a run spent of differential privacy, also those after the chosen one, at the stated "
            "delta; less is more private. It covers what the server sends out. It does not cover sizes and label "
            "counts, scores and the choice of the round by them, tuning, and each client's personal model. A dash: no "
            "differential privacy, or nothing sent.",
            lambda row: significant(row.epsilon),
        ),
        Column(
            "megabytes",
            "MB per",
            "client",
            "megabytes that a client sent and received on average until the chosen round: the total, divided "
            "by all clients, drawn or not; rounds after the chosen one do not count.",
            lambda row: megabytes(row.megabytes),
        ),
        Column(
            "chosen_round",
            "chosen",
            "round",
            "the round with the best validation score, averaged over seeds; test data are read once, at that round.",
            lambda row: f"{row.chosen_round:.0f}",
        ),
        Column(
            "never",
            "never",
            "drawn",
            "clients that were never drawn up to the chosen round, averaged over seeds; the method serves them like "
            "newcomers, and they count in every score.",
            lambda row: f"{row.never:.3g}",
        ),
        Column(
            "unseen",
            "unseen",
            "clients",
            f"mean {metric} of clients that were held out of training, each with the model that the method gives it.",
            lambda row: number.between(row.unseen, row.unseen_ci),
            down,
        ),
    ]
    there = {
        "epsilon": any(row.epsilon is not None for row in rows),
        "pooled": any(row.pooled for row in rows),
        "clients_low": any(known(row.clients_low) is not None for row in rows),
        "unseen": any(known(row.unseen) is not None for row in rows),
        "never": any(row.never for row in rows),
    }
    return [c for c in found if there.get(c.key, True)]


def _subgroups(comparison: Comparison, name: str, number: Number) -> list[Column]:
    """The columns of the worst-served subgroup and of the gap, of one column of subgroups."""
    metric, of = comparison.metric.title, f"by {name}"
    rule = f"the mean over clients with at least {LEAST} of its test examples"
    return [
        Column(
            WORST + name,
            "worst",
            of,
            f"{metric} of the subgroup {of} that is served worst: {rule}.",
            lambda row: number(row.subgroups[name].value),
            not comparison.metric.higher,
            True,
            lambda row: row.subgroups[name].value,
        ),
        Column(
            GAP + name,
            "gap",
            of,
            f"{metric} of the best-served subgroup {of} minus that of the worst-served, without sign.",
            lambda row: number(row.subgroups[name].gap),
            True,
            True,
            lambda row: row.subgroups[name].gap,
        ),
    ]


def _other(comparison: Comparison, card: MetricCard, rows: list[Row]) -> Column:
    """The column of an additional metric."""
    number = Number.among(card, [row.others[card.name] for row in rows])
    first, _, rest = card.title.partition(" ")
    lacking = max(seed.test.undefined(card.name) for m in comparison.methods for seed in m.seeds)
    return Column(
        OTHER + card.name,
        first,
        rest + (" %" if card.percent else ""),
        f"{card.title} averaged over clients with equal weight; {'higher' if card.higher else 'lower'} is better."
        + (f" {undefined(comparison, card, lacking)}" if lacking else ""),
        lambda row: number(row.others[card.name]),
        not card.higher,
        card.named,
        lambda row: row.others[card.name],
    )


def undefined(comparison: Comparison, card: MetricCard, clients: int) -> str:
    """A sentence if a metric is undefined for some clients; otherwise empty."""
    if not clients:
        return ""
    people = len(comparison.methods[0].seeds[0].test.clients)
    why = f" ({card.undefined})" if card.undefined else ""
    if clients == people:
        return f"{card.title} is undefined for every client{why}."
    return f"For {clients} of {people} clients, {card.title} is undefined{why}; means leave them out."


def best(comparison: Comparison, rows: list[Row]) -> Row:
    """The row with the best mean among methods of a federation; the first one if no mean is known."""
    rows = [row for row in rows if row.name != POOLED] or rows
    sign = 1 if comparison.metric.higher else -1
    return max(rows, key=lambda row: -math.inf if known(row.mean) is None else sign * row.mean)
