"""The tables of methods and of clients, as HTML: readable without scripts, enhanced by the script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from plures.evaluate.results import BASELINES, LEAST, POOLED, Comparison, MethodResult, MetricCard, Row
from plures.evaluate.summary import summarize
from plures.report.columns import MISSING, OTHER, Column, Number, best, known, probability
from plures.report.document import about, train_size
from plures.report.markup import capital, cell, count, heading, table, whole

MOST_LINES = 500
"""Most clients that a page lists; the charts draw all of them."""
RECOMPUTED = {"mean", "clients_low", "weighted", "std", "worst", "bottom", "harmed_local", "harmed_fedavg"}
"""Columns that follow the page's client filter; the others concern the whole run.

The page has no bootstrap: that interval becomes a dash."""


def methods_table(comparison: Comparison, rows: list[Row], shown: Sequence[Column]) -> str:
    """The table of methods, with each mean and its interval drawn on one scale."""
    low, high = _scale(rows)
    head = heading("method", "", kind="name") + "".join(
        heading(c.heading, c.detail, first="ascending" if c.rising else "descending") for c in shown
    )
    head += heading("p", "vs fine-tuned", first="ascending")
    lines = []
    for row in rows:
        cells = []
        for column in shown:
            drawn = _interval(row, low, high) if column.key == "mean" else ""
            key = column.key if column.key in RECOMPUTED or column.key.startswith(OTHER) else ""
            kind = "mean" if column.key == "mean" else ""
            cells.append(cell(_value(column.write(row)) + drawn, column.value(row), kind, key=key))
        itself = row.name == "fedavg_ft"
        p = MISSING if itself else escape(probability(row.p_value).removeprefix("p = ").removeprefix("p "))
        cells.append(cell(_value(p), None if itself else row.p_value, key="p"))
        lines.append(_line(row, best(comparison, rows), cells))
    return table("sortable methods", "Methods over all clients and seeds", head, lines)


def pooled_table(comparison: Comparison, rows: list[Row]) -> str:
    """Every metric on all clients' test examples together; empty if it is not known."""
    if not any(row.pooled for row in rows):
        return ""
    cards = [comparison.metric, *comparison.others]
    numbers = [Number.among(card, [row.pooled.get(card.name, np.nan) for row in rows]) for card in cards]
    head = heading("method", "", kind="name")
    for card in cards:
        first = "descending" if card.higher else "ascending"
        head += heading(card.title, "%" if card.percent else "", first=first)
    lines = []
    for row in rows:
        values = [row.pooled.get(card.name) for card in cards]
        cells = [cell(_value(number(value)), known(value)) for number, value in zip(numbers, values, strict=True)]
        lines.append(_line(row, best(comparison, rows), cells))
    shown = table("sortable", "Metrics of all clients' test examples together", head, lines)
    about = (
        "All clients' test examples together, each predicted by its own client's model: large clients count for more, "
        "and metrics that rank or count across clients are other numbers than means over clients. Scores of different "
        "personal models cannot be ranked together, so compare methods by the means above."
    )
    return f"<details><summary><b>Pooled metrics</b> <span>all rows</span></summary><p>{about}</p>{shown}</details>"


def fairness_table(comparison: Comparison, rows: list[Row]) -> str:
    """Spread of every method's scores over clients."""
    number, metric = Number.of(comparison, rows), comparison.metric
    worse = "ascending" if metric.higher else "descending"
    head = heading("method", "", kind="name") + "".join(
        heading(words, detail, first=first)
        for words, detail, first in (
            ("std", "clients", "ascending"),
            ("worst", "client", worse),
            ("bottom", "10 %", worse),
            ("10 %", "quantile", worse),
            ("Jain's", "index", "descending"),
        )
    )
    lines = []
    for row in rows:
        method = comparison.method(row.name)
        over = summarize(method.per_client(metric.name), method.seeds[0].test.sizes, higher=metric.higher)
        shown = {"std": over.std, "worst": over.worst, "bottom": over.bottom, "p10": over.p10}
        cells = [cell(_value(number(value)), value, key=key) for key, value in shown.items()]
        jain = known(over.jain)
        cells.append(cell(_value(MISSING if jain is None else f"{jain:.3f}"), jain, key="jain"))
        lines.append(_line(row, best(comparison, rows), cells))
    return table("sortable methods", "Fairness over clients", head, lines)


def subgroups_table(comparison: Comparison, rows: list[Row], column: str) -> str:
    """A column's subgroups by methods, in every metric: means over clients, and all clients' examples together."""
    main, others = comparison.metric, comparison.others
    first = _by_subgroup(comparison, rows, column, main, pooled=False)
    rest = [_by_subgroup(comparison, rows, column, main, pooled=True)]
    rest += [
        _by_subgroup(comparison, rows, column, card, pooled=together) for card in others for together in (False, True)
    ]
    summary = "<summary><b>Pooled, and other metrics</b></summary>"
    return f"<h3>By {escape(column)}</h3>{first}<details>{summary}{''.join(rest)}</details>"


def _by_subgroup(comparison: Comparison, rows: list[Row], column: str, metric: MetricCard, *, pooled: bool) -> str:
    """One metric by the subgroups of a column."""
    card = comparison.federation.subgroups[column]
    found = np.stack([comparison.method(row.name).by_subgroup(column, metric.name, pooled=pooled) for row in rows])
    number = Number.among(metric, found[np.isfinite(found)].tolist())
    sizes, judged = [sum(sizes) for sizes in card.sizes["test"]], card.judged(LEAST)
    falling = "descending" if metric.higher else "ascending"
    head = heading("method", "", kind="name")
    for name, size, clients in zip(card.names, sizes, judged, strict=True):
        detail = count(size, "row") if pooled else f"{count(size, 'row')}, judged by {count(clients, 'client')}"
        head += heading(name, detail, first=falling)
    head += heading("worst", "subgroup", kind="text") + heading("gap", "", first="ascending")
    lines = []
    for row, values in zip(rows, found, strict=True):
        known_ones = np.flatnonzero(~np.isnan(values))
        order = known_ones[np.argsort(values[known_ones] * (1 if metric.higher else -1), kind="stable")]
        cells = [cell(_value(number(value)), known(value)) for value in values.tolist()]
        several = len(order) > 1
        gap = abs(float(values[order[-1]] - values[order[0]])) if several and np.isfinite(values[order]).all() else None
        cells.append(f'<td class="text">{escape(card.names[int(order[0])]) if several else MISSING}</td>')
        cells.append(cell(_value(MISSING if gap is None else number(gap)), gap))
        lines.append(_line(row, best(comparison, rows), cells))
    kind = "pooled: all clients' rows together" if pooled else "mean over clients"
    title = f"{metric.title}{' %' if metric.percent else ''} by {column}, {kind}"
    return f'<p class="soft">{escape(capital(title))}</p>' + table("sortable", title, head, lines)


def _line(row: Row, winner: Row, cells: Sequence[str]) -> str:
    """A method's row, beginning with its title and role."""
    leads = row is winner and known(row.mean) is not None
    role = "needs all data in one place" if row.name == POOLED else "baseline" if row.name in BASELINES else ""
    kind = " ".join(filter(None, ["baseline" if role else "", "best" if leads else ""]))
    words = ", ".join(filter(None, ["best mean" if leads else "", role]))
    title = f'<span data-title>{escape(row.title)}</span><small data-note="{role}">{words}</small>'
    return f'<tr class="{kind}" data-method="{escape(row.name)}"><th scope="row">{title}</th>{"".join(cells)}</tr>'


def _value(words: str) -> str:
    return f'<span class="v">{words}</span>'


STRETCH = 1.5
"""The constant predictor is left out of the scale of means if it would stretch it by more than this factor."""


def _scale(rows: Sequence[Row]) -> tuple[float, float]:
    """The range of the means with their intervals."""
    means = [row for row in rows if known(row.mean) is not None]
    ends = {row.name: (row.mean - (row.mean_ci or 0.0), row.mean + (row.mean_ci or 0.0)) for row in means}
    ranges = []
    for some in (ends.values(), [of for name, of in ends.items() if name != "constant"]):
        ranges.append((min((low for low, _ in some), default=0.0), max((high for _, high in some), default=1.0)))
    (low, high), (least, most) = ranges
    return (least, most) if most > least and high - low > STRETCH * (most - least) else (low, high)


def _interval(row: Row, low: float, high: float) -> str:
    """A mean and its interval, drawn on the range of the table; an arrow at the edge if it is beyond."""
    if known(row.mean) is None or high <= low:
        return ""
    width = row.mean_ci or 0.0
    left, middle, right = (100 * (x - low) / (high - low) for x in (row.mean - width, row.mean, row.mean + width))
    off = right < 0 or left > 100
    if off:
        left = right = middle = 0.0 if right < 0 else 100.0
    return (
        f'<span class="interval{" off" if off else ""}" aria-hidden="true" '
        f'style="--l:{left:.1f}%;--w:{right - left:.1f}%;--m:{middle:.1f}%"><i></i><b></b></span>'
    )


def clients_table(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """Clients by methods: sizes, values, and a tint that grows with the value."""
    metric = comparison.metric
    people = comparison.methods[0].seeds[0].test.clients
    values_of = np.stack([comparison.method(row.name).per_client(metric.name) for row in rows], axis=1)
    lines = [(name, train_size(comparison, name), values_of[i], False) for i, name in enumerate(people)]
    held = [_unseen(comparison.method(row.name), metric.name) for row in rows]
    for name in dict.fromkeys(name for values in held for name in values):
        lines.append((name, None, np.array([values.get(name, np.nan) for values in held]), True))
    everything = np.concatenate([values for _, _, values, _ in lines])
    finite = everything[np.isfinite(everything)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    scored = [s for run in comparison.methods[0].seeds for s in (run.unseen, run.test) if s is not None]
    tests = {name: size for s in scored for name, size in zip(s.clients, s.sizes, strict=True)}
    head = heading("client", "", kind="name") + heading("examples", "train", first="descending")
    head += heading("examples", "test", first="descending")
    head += "".join(heading(row.title, "", first="descending" if metric.higher else "ascending") for row in rows)
    body = []
    for name, train, values, unseen in lines[:MOST_LINES]:
        facts = about(comparison, name)
        note = f"<small>{escape(' · '.join(facts))}</small>" if facts else ""
        tag = '<span class="tag quiet">unseen</span>' if unseen else ""
        chosen = [v for v, row in zip(values, rows, strict=True) if row.name != POOLED and np.isfinite(v)]
        good = [v if metric.higher else -v for v in chosen]
        cells = [cell(whole(train), train), cell(whole(tests.get(name)), tests.get(name))]
        for value in values:
            tint = _tint(value, low, high, higher=metric.higher)
            top = good and np.isfinite(value) and (value if metric.higher else -value) == max(good)
            cells.append(cell(number(value), known(value), "heat top" if top else "heat", tint))
        title = f'<span data-client="{escape(name)}">{escape(name)}</span>{tag}{note}'
        body.append(f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>')
    return table("sortable clients", f"{metric.title} of every client with every method", head, body)


def _tint(value: float, low: float, high: float, *, higher: bool) -> str:
    if not np.isfinite(value) or high <= low:
        return ""
    part = (value - low) / (high - low)
    return f"--h:{100 * (part if higher else 1 - part):.0f}%"


def _unseen(method: MethodResult, metric: str) -> dict[str, float]:
    """Unseen clients and their values, averaged over the seeds in which they were held out."""
    found: dict[str, list[float]] = {}
    for seed in method.seeds:
        if seed.unseen is not None:
            for name, value in zip(seed.unseen.clients, seed.unseen.values(metric), strict=True):
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}
