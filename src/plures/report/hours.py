"""Simulated hours and joules: who is left out by devices and deadlines, and are they harmed, by class of device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from plures.evaluate.record import FleetCard
from plures.evaluate.results import Comparison, MethodResult, Row
from plures.evaluate.scores import Floats
from plures.evaluate.summary import harmed, mean_known
from plures.report.columns import MISSING, Number, known, share, significant
from plures.report.markup import cell, count, heading, scaled, table


def clocked(comparison: Comparison) -> bool:
    """Whether the runs have a clock."""
    return any(seed.fleet is not None for method in comparison.methods for seed in method.seeds)


def lead(comparison: Comparison) -> str:
    """How the rounds were simulated, in a few sentences."""
    told = {
        "fleet": "fleet {}",
        "deadline": "deadline after {}",
        "late": "late clients: {}",
        "over_select": "{} times as many clients asked as a round needs",
        "buffer": "buffered aggregation, a step for every {} changes",
        "staleness": "staleness exponent {}",
        "select": "selection {}",
    }
    given = {name: comparison.settings.get(name) for name in told}
    if given["deadline"] is not None:
        given["deadline"] = lasting(given["deadline"])
    plain: dict[str, object] = {"late": "drop", "over_select": 1.0}
    parts = [told[name].format(value) for name, value in given.items() if value not in (None, plain.get(name))]
    text = ", ".join(parts)
    return (
        f"Simulated devices: {text}. Up to the chosen round, summed over seeds. A visit counted, was late, was dropped "
        "(its device failed or went away), or was surplus (others were done first). Clients that never counted are "
        "served like newcomers. Methods that send nothing wait for nobody. Harmed: worse off than with local training."
    )


def fleets(method: MethodResult) -> list[FleetCard]:
    """What the devices did, for each seed."""
    return [seed.fleet for seed in method.seeds if seed.fleet is not None]


def body(comparison: Comparison, rows: list[Row]) -> str:
    """The tables; HTML."""
    return _totals(comparison, rows) + _classes(comparison, rows)


def _totals(comparison: Comparison, rows: list[Row]) -> str:
    """Hours and joules of each method until its chosen round."""
    number = Number.of(comparison, rows)
    head = _heads(
        ["method"],
        (
            (comparison.metric.title, "mean", "descending" if comparison.metric.higher else "ascending"),
            ("simulated time", "", "ascending"),
            ("energy", "all devices", "ascending"),
            ("of that in vain", "%", "ascending"),
            ("never counted", "clients", "descending"),
        ),
    )
    lines = []
    for row in rows:
        method = comparison.method(row.name)
        found = fleets(method)
        if not found:
            continue
        points = [seed.reached for seed in method.seeds if seed.reached is not None]
        hours = [point.hours for point in points if point.hours is not None]
        joules = [point.joules for point in points if point.joules is not None]
        asked, counted = (sum(np.sum(one(card)) for card in found) for one in (_asked, _counted))
        never = float(np.mean([np.sum(_counted(card) == 0) for card in found]))
        vain = 1 - counted / asked if asked else np.nan
        lines.append(
            f'<tr><th scope="row" class="name">{escape(row.title)}</th>'
            + cell(number(row.mean), known(row.mean))
            + _cell(float(np.mean(hours)) * 3600 if hours else np.nan, lasting)
            + _cell(float(np.mean(joules)) if joules else np.nan, energy)
            + cell(share(vain), known(vain))
            + cell(f"{never:.3g}", never)
            + "</tr>"
        )
    return table("sortable", "Simulated time and energy of each method", head, lines)


def _classes(comparison: Comparison, rows: list[Row]) -> str:
    """By method and class of devices: what became of the visits, and how the clients are served."""
    number, metric = Number.of(comparison, rows), comparison.metric
    local = comparison.method("local").per_client(metric.name)
    people = comparison.methods[0].seeds[0].test.clients
    head = _heads(
        ["method", "device"],
        (
            ("clients", "", "descending"),
            ("counted", "% of visits", "descending"),
            ("late", "%", "descending"),
            ("dropped", "%", "descending"),
            ("surplus", "%", "descending"),
            ("never counted", "clients", "descending"),
            (metric.title, "mean", "descending" if metric.higher else "ascending"),
            (metric.title, "never counted", "descending" if metric.higher else "ascending"),
            ("harmed", "%", "descending"),
            ("harmed", "% of never counted", "descending"),
            ("energy", "a client", "descending"),
        ),
    )
    lines = []
    for row in rows:
        method = comparison.method(row.name)
        found = fleets(method)
        if not found:
            continue
        values = method.per_client(metric.name)
        places = {name: place for place, name in enumerate(found[0].clients)}
        mine = np.array([places[name] for name in people])
        counted = np.mean([_counted(card) for card in found], axis=0)
        kinds = np.array(found[0].kinds)
        for kind in sorted({*found[0].kinds}, key=found[0].kinds.index):
            within = kinds == kind
            asked = sum(float(np.sum(_asked(card)[within])) for card in found)
            shares = [
                sum(float(np.sum(np.array(getattr(card, name))[within])) for card in found) / asked if asked else np.nan
                for name in ("counted", "late", "dropped", "surplus")
            ]
            left = within & (counted == 0)
            here, out = within[mine], left[mine]
            joules = float(np.mean([np.mean(np.array(card.joules)[within]) for card in found]))
            means = [mean_known(values[some]) if some.any() else np.nan for some in (here, out)]
            hurt = [_harmed(values, local, some, higher=metric.higher) for some in (here, out)]
            lines.append(
                f'<tr><th scope="row" class="name">{escape(row.title)}</th><td class="text">{escape(kind)}</td>'
                + cell(f"{int(within.sum()):,}", float(within.sum()))
                + "".join(cell(share(value), known(value)) for value in shares)
                + cell(f"{int(left.sum()):,}", float(left.sum()))
                + "".join(cell(number(value), known(value)) for value in means)
                + "".join(cell(share(value), known(value)) for value in hurt)
                + _cell(joules, energy)
                + "</tr>"
            )
    unfit = sum(found.unfit.count(True) for found in fleets(comparison.method("fedavg"))[:1])
    note = f"<p>{count(unfit, 'device')} cannot hold what FedAvg's training needs and were never asked.</p>"
    return table("sortable", "Visits and scores by class of device", head, lines) + (note if unfit else "")


def _heads(names: Sequence[str], columns: Sequence[tuple[str, str, str]]) -> str:
    """Headings of a table: names first, then numbers, each with a detail and the order of a first click."""
    return "".join(heading(name, "", kind="name") for name in names) + "".join(
        heading(words, detail, first=first) for words, detail, first in columns
    )


def _asked(card: FleetCard) -> Floats:
    return np.asarray(np.sum([card.counted, card.late, card.dropped, card.surplus], axis=0), dtype=np.float64)


def _counted(card: FleetCard) -> Floats:
    return np.array(card.counted, dtype=np.float64)


def _harmed(own: Floats, local: Floats, some: Sequence[bool], *, higher: bool) -> float:
    """Share of some clients that are worse off than with local training; NaN for none."""
    return harmed(own[some], local[some], higher=higher) if np.any(some) else float("nan")


def lasting(seconds: float) -> str:
    """A time in hours, minutes, seconds or milliseconds, with three digits."""
    for limit, unit, name in ((2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (1.0, 1.0, "s")):
        if seconds >= limit:
            return f"{significant(seconds / unit)} {name}"
    return _small(seconds, "s")


def energy(joules: float) -> str:
    """An energy with a decimal prefix and three digits."""
    return scaled(joules, "J") if joules >= 1 else _small(joules, "J")


def _small(value: float, unit: str) -> str:
    """Less than one, in thousandths."""
    if not value:
        return f"0 {unit}"
    return f"{significant(value * 1e3)} m{unit}" if value >= 1e-3 else f"under 1 m{unit}"


def _cell(value: float, write: Callable[[float], str]) -> str:
    return cell(MISSING if known(value) is None else write(value), known(value))
