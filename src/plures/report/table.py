"""The comparison as a terminal table, as Markdown and as a sentence."""

from __future__ import annotations

import math

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from plures.evaluate.results import BASELINES, POOLED, Comparison, Row
from plures.evaluate.summary import paired_test, worse
from plures.report.against import sentence
from plures.report.columns import OTHER, Number, best, columns, known, probability, undefined
from plures.texts import markdown

LEVEL = 0.05
LEFT_OUT = ("chosen_round",)
SPARED = (
    "chosen_round",
    "never",
    "pooled",
    "weighted",
    OTHER,
    "bottom",
    "std",
    "megabytes",
    "clients_low",
    "unseen",
    "worst",
    "harmed_fedavg",
)
NAME_WIDTH = 12
PLACE = "Pooled needs all data in one place, which breaks privacy, so it is not to choose from"
HARMED = "Harmed: share of clients worse off than alone (local) and than with one global model (FedAvg)."


class Fitted(Table):
    """A table that drops columns if the terminal is too narrow, the least important first.

    Attributes:
        spared: headings of the columns that may be dropped, in order; every column has a ``min_width``.
    """

    spared: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        everything = self.columns
        for heading in self.spared:
            if sum(column.min_width or 0 for column in self.columns) + len(self.columns) - 1 <= options.max_width:
                break
            self.columns = [column for column in self.columns if column.header != heading]
        try:
            yield from super().__rich_console__(console, options)
        finally:
            self.columns = everything


def console_table(comparison: Comparison) -> Table:
    """The comparison for a terminal: baselines first, then best first; narrow terminals drop columns.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> from plures.report import console_table
        >>> result = plures.compare(hospitals, [], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> console_table(result).row_count
        5
    """
    rows = comparison.rows()
    shown = columns(comparison, rows)
    winner = best(comparison, rows)
    lacking = max(row.undefined for row in rows)
    said = HARMED, _apart(rows), privacy(comparison), undefined(comparison, comparison.metric, lacking)
    table = Fitted(
        title=Text(f"{comparison.federation.name}: {describe_metric(comparison)}", style="bold"),
        title_justify="left",
        caption=" ".join(filter(None, said)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("method", min_width=NAME_WIDTH)
    headings = {column.key: f"{column.heading}\n{column.detail.removeprefix('vs ')}" for column in shown}
    for column in shown:
        heading = headings[column.key]
        width = max(map(len, [*heading.split("\n"), *map(column.write, rows)]))
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    asked = {column.key for column in shown if column.named}
    others = [key for key in reversed(headings) if key not in asked]
    dropped = [key for spared in SPARED for key in others if key.startswith(spared)]
    table.spared = tuple(headings[key] for key in (*dropped, *sorted(asked, key=list(headings).index, reverse=True)))
    for place, row in enumerate(rows):
        style = "bold green" if row is winner and known(row.mean) is not None else ""
        cells = [Text(column.write(row), style if column.key == "mean" else "") for column in shown]
        first = (*BASELINES, POOLED)
        last = place + 1 < len(rows) and row.name in first and rows[place + 1].name not in first
        table.add_row(Text(row.title, style), *cells, end_section=last)
    return table


def privacy(comparison: Comparison) -> str:
    """What the epsilons of a comparison stand for, one sentence for each plan; empty without differential privacy."""
    found = [seed.privacy.spent for m in comparison.methods for seed in m.seeds if seed.privacy is not None]
    plans = dict.fromkeys(f"{one.plan}." for one in found)
    return " ".join(plans)


def markdown_table(comparison: Comparison) -> str:
    """The comparison as a GitHub table, with the best mean in bold.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> from plures.report import markdown_table
        >>> result = plures.compare(hospitals, [], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> markdown_table(result).splitlines()[4][:32]
        '| FedAvg | 50.0 | 0.0 to 100.0 |'
    """
    rows = comparison.rows()
    shown = [column for column in columns(comparison, rows) if column.key not in LEFT_OUT]
    winner = best(comparison, rows)
    lines = [
        " | ".join(["method", *(f"{c.heading} {c.detail}" for c in shown)]),
        " | ".join(["---", *("---:" for _ in shown)]),
    ]
    for row in rows:
        cells = [
            f"**{c.write(row)}**" if c.key == "mean" and row is winner and known(row.mean) is not None else c.write(row)
            for c in shown
        ]
        lines.append(" | ".join([markdown(row.title), *cells]))
    return "".join(f"| {line} |\n" for line in lines)


def headline(comparison: Comparison) -> str:
    """The conclusion of the comparison, in one to four plain sentences.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> from plures.report import headline
        >>> result = plures.compare(hospitals, ["ditto"], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> headline(result).partition(" (")[0]
        'No method beats the best baseline: Ditto equals Local only on average'
    """
    return verdict(comparison, comparison.rows())


def verdict(comparison: Comparison, rows: list[Row]) -> str:
    """The headline, from the rows of the table."""
    lacking = undefined(comparison, comparison.metric, max(row.undefined for row in rows))
    parts = (
        _verdict(comparison, rows),
        sentence(comparison, rows),
        _together(comparison, rows),
        _sampled(comparison, rows),
        lacking,
        _never(comparison, rows),
        _diverged(comparison, rows),
    )
    return " ".join(filter(None, parts))


def _apart(rows: list[Row]) -> str:
    """What the pooled baseline is; empty without it."""
    return f"{PLACE}." if any(row.name == POOLED for row in rows) else ""


def _together(comparison: Comparison, rows: list[Row]) -> str:
    """What one model would reach with all data in one place; empty if that was not tried."""
    there = next((row for row in rows if row.name == POOLED), None)
    if there is None:
        return ""
    number, lead = Number.of(comparison, rows), best(comparison, rows)
    score = _score(comparison, there, number)
    if known(there.mean) is None or known(lead.mean) is None:
        return f"With all data in one place, which breaks privacy, one model has {score}."
    gain = (there.mean - lead.mean) * (1 if comparison.metric.higher else -1)
    way = f"{number.distance(gain)} {'better' if gain > 0 else 'worse'} than" if gain else "as"
    return f"With all data in one place, which breaks privacy, one model has {score}, {way} {lead.title}."


def _sampled(comparison: Comparison, rows: list[Row]) -> str:
    """A sentence if only a sample of the clients was scored, with its accuracy for all; empty if all were."""
    card = comparison.federation
    if card.population is None:
        return ""
    widths = [row.sampled_ci for row in rows if row.sampled_ci is not None and math.isfinite(row.sampled_ci)]
    far = f"; a mean over all clients lies within {Number.of(comparison, rows).distance(max(widths))}" if widths else ""
    return (
        f"Only {len(card.clients):,} of {card.population:,} clients were scored, one random sample for all methods, "
        f"seeds and trials{far}{' of the one given (95 % confidence)' if widths else ''}. The worst and the harmed are "
        "counted among them."
    )


def _never(comparison: Comparison, rows: list[Row]) -> str:
    """How many clients were never drawn; empty if all took part."""
    most = max(row.never for row in rows)
    if not most:
        return ""
    people = len(comparison.federation.clients)
    return (
        f"Up to {most:.3g} of {people} clients had not been drawn by the chosen round; the method serves each of them "
        "like a newcomer."
    )


def _diverged(comparison: Comparison, rows: list[Row]) -> str:
    """Methods and clients whose models diverged; empty if none did."""
    lost = [row for row in rows if row.diverged]
    if not lost:
        return ""
    people = len(comparison.methods[0].seeds[0].test.clients)
    text = ", ".join(f"{row.title} for {row.diverged} of {people} clients" for row in lost)
    return f"Training diverged, so models give no finite numbers, with {text}: try smaller learning rates."


def _verdict(comparison: Comparison, rows: list[Row]) -> str:
    """The headline, without divergence."""
    number = Number.of(comparison, rows)
    baselines = [row for row in rows if row.name in BASELINES]
    tried = [row for row in rows if row.name not in (*BASELINES, POOLED)]
    others = [row for row in tried if known(row.mean) is not None]
    base = best(comparison, baselines)
    if known(base.mean) is None:
        diverged = any(row.diverged for row in baselines)
        return f"No baseline has a {'finite ' if diverged else ''}score on the test data, so no conclusion is possible."
    if not others:
        lost = "No other method has a finite score" if tried else "Only baselines were compared"
        text = f"{lost}; {base.title} serves the clients best on average"
        return f"{text} ({_score(comparison, base, number)}). {_harm(comparison, base)}".strip()
    lead = best(comparison, others)
    gain = (lead.mean - base.mean) * (1 if comparison.metric.higher else -1)
    own, reference = (comparison.method(r.name).per_client(comparison.metric.name) for r in (lead, base))
    p = paired_test(own, reference)
    clients = int((~(np.isnan(own) | np.isnan(reference))).sum())
    test = f"{probability(p)}, paired over {clients} clients"
    lead_score, base_score = (_score(comparison, row, number) for row in (lead, base))
    far = number.distance(gain)
    if gain < 0:
        text = (
            f"No method beats the best baseline: {base.title} serves the clients best on average ({base_score}); "
            f"{lead.title} comes closest, {far} behind ({test})."
        )
    elif gain == 0:
        text = f"No method beats the best baseline: {lead.title} equals {base.title} on average ({base_score})."
    elif p >= LEVEL:
        text = (
            f"No method clearly beats the best baseline: {lead.title} ({lead_score}) leads {base.title} by {far}, "
            f"a difference over clients that chance can explain ({test})."
        )
    else:
        text = (
            f"{lead.title} serves the clients best on average ({lead_score}), {far} better than the strongest "
            f"baseline, {base.title} ({test})."
        )
    return " ".join(filter(None, [text, _seeds(lead, base, abs(gain)), _harm(comparison, base if gain < 0 else lead)]))


def describe_metric(comparison: Comparison) -> str:
    """The metric, its unit and its direction."""
    unit = ", %" if comparison.metric.percent else ""
    way = "higher" if comparison.metric.higher else "lower"
    return f"{comparison.metric.title}{unit} on test data ({way} is better)"


def _score(comparison: Comparison, row: Row, number: Number) -> str:
    return f"{comparison.metric.title} {number.between(row.mean, row.mean_ci)}{number.unit()}"


def _seeds(lead: Row, base: Row, gap: float) -> str:
    """What the seeds say about the difference."""
    if lead.mean_ci is None or base.mean_ci is None:
        return "With one seed there is no interval: another seed may change the order."
    if gap and gap <= lead.mean_ci + base.mean_ci:
        return "Their 95 % intervals over seeds overlap."
    return ""


def _harm(comparison: Comparison, row: Row) -> str:
    """How many clients a method harms against training alone and against FedAvg."""
    metric = comparison.metric.name
    own = comparison.method(row.name).per_client(metric)
    counts = []
    for name, text in (("local", "local-only training"), ("fedavg", "FedAvg")):
        if name != row.name:
            reference = comparison.method(name).per_client(metric)
            lost = int(worse(own, reference, higher=comparison.metric.higher).sum())
            known = ~(np.isnan(own) | np.isnan(reference))
            counts.append(f"{lost} of {int(known.sum())} clients against {text}")
    return f"{row.title} harms {' and '.join(counts)}."
