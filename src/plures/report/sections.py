"""The sections of the page: title, text and controls of each. A section without data does not appear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from plures.audit import Audit
from plures.evaluate.coincidence import PROXY, explained, proxies
from plures.evaluate.results import LEAST, POOLED, REFERENCES, Comparison, Row
from plures.report import against, hours
from plures.report.audits import LEAD, TITLE, audits_body
from plures.report.columns import Number, columns
from plures.report.markup import capital, count
from plures.report.sheets import costs, glossary, how, sheet, tuning
from plures.report.table import PLACE, describe_metric, privacy
from plures.report.tables import MOST_LINES, clients_table, fairness_table, methods_table, pooled_table, subgroups_table

WALK = "Left and right arrow keys go from {point} to {point}, up and down from {row} to {row}."


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: its anchor.
        title: its heading.
        lead: introduction; HTML.
        link: its name in the list of sections; empty for the title.
        controls: choices beside a chart; HTML.
        chart: description of the chart for screen readers; empty without a chart.
        before: content above the chart; HTML.
        body: content below the chart; HTML.
        table: whether the table below can be downloaded.
    """

    id: str
    title: str
    lead: str
    link: str = ""
    controls: str = ""
    chart: str = ""
    before: str = ""
    body: str = ""
    table: bool = False

    def html(self) -> str:
        save = ""
        if self.chart:
            save = "".join(
                f'<button type="button" data-save="{kind.lower()}" '
                f'aria-label="Download {escape(self.title)} as {kind}">{kind}</button>'
                for kind in ("SVG", "CSV")
            )
        elif self.table:
            save = (
                f'<button type="button" data-save-table="{self.id}" '
                f'aria-label="Download {escape(self.title)} as CSV">CSV</button>'
            )
        controls = f'<div class="controls">{self.controls}<div class="save">{save}</div></div>' if save else ""
        plot = (
            f'<div class="plot" tabindex="0" role="group" aria-label="{escape(self.chart)}"></div>'
            if self.chart
            else ""
        )
        lead = f'<p class="lead">{self.lead}</p>' if self.lead else ""
        kind = ' class="chart"' if self.chart else ""
        return (
            f'<section id="{self.id}"{kind} aria-labelledby="{self.id}-title"><h2 id="{self.id}-title" tabindex="-1">'
            f"{escape(self.title)}</h2>{lead}{controls}{self.before}{plot}{self.body}</section>"
        )


def sections(
    comparison: Comparison, rows: list[Row], drawn: dict[str, Any], audits: Mapping[str, Audit]
) -> list[Section]:
    """All sections for which there are data, in order."""
    number, shown, metric = Number.of(comparison, rows), columns(comparison, rows), comparison.metric
    unit = ", %," if metric.percent else ""
    title = escape(metric.title)
    has = {part: [m for m in drawn["methods"] if m[part]] for part in ("calibration", "clusters", "personal", "cold")}
    groups = list(drawn["groups"])
    legend = '<div class="legend" role="group" aria-label="Methods drawn in colour"></div>'
    key = '<div class="key"></div>'
    found = [
        Section(
            "methods",
            "Methods",
            f"{capital(escape(describe_metric(comparison)))}, read once, at the round that validation chose. "
            "Baselines first, then the best first; a heading sorts."
            + (f" {PLACE}." if any(row.name == POOLED for row in rows) else "")
            + escape(f" {privacy(comparison)}".rstrip()),
            body=methods_table(comparison, rows, shown) + pooled_table(comparison, rows),
            table=True,
        ),
        *(
            [
                Section(
                    "against",
                    "Under attack, and robust combination" if comparison.against.attackers else "Robust combination",
                    escape(against.lead(comparison)),
                    "Attack" if comparison.against.attackers else "Combination",
                    body=against.body(comparison, rows),
                )
            ]
            if comparison.against is not None
            else []
        ),
        *(
            [
                Section(
                    "hours",
                    "Simulated time and energy",
                    escape(hours.lead(comparison)),
                    "Devices",
                    body=hours.body(comparison, rows),
                )
            ]
            if hours.clocked(comparison)
            else []
        ),
        *([_audited(rows, audits)] if audits else []),
        Section(
            "gain",
            "Which clients gain and which are harmed",
            f"One dot per client: its {title} with the method against the same client with the reference. Right of "
            "the line the client gains, left of it the client is harmed. The upright mark is the mean over clients. "
            "A double click, or Enter, opens the client. An arrow at the edge stands for a constant predictor that is "
            "far below all others.",
            "Gain or harm",
            switch("reference", "Reference", [(name, comparison.method(name).title) for name in REFERENCES]),
            "Gain or harm of every client. " + WALK.format(point="client", row="method"),
        ),
        *(
            [_curves(comparison, legend)]
            if any(p["mean"] is not None for m in drawn["methods"] for p in m["curve"])
            else []
        ),
        Section(
            "tradeoff",
            f"What a {'high' if metric.higher else 'low'} {metric.title} costs",
            f"Mean {title} on test data against what it takes. Methods on the dashed line are on the Pareto front: "
            "nothing cheaper is as good.",
            "Cost",
            switch("cost", "Cost", [("bytes", "bytes"), ("seconds", "time"), ("flops", "operations")]),
            "Scores against cost. " + WALK.format(point="method", row="row"),
        ),
        Section(
            "spread",
            "Distribution over clients",
            "A mean can hide the clients who are served badly. One dot per client; the box spans the middle half of "
            "the clients.",
            "Distribution",
            "",
            "Distribution over clients. " + WALK.format(point="client", row="method"),
        ),
        Section(
            "fairness",
            "Fairness",
            "The mean over clients against the mean of the worst tenth; hollow dots are baselines. Jain's index is 1 "
            "where all clients are served alike.",
            "",
            "",
            "Mean against the worst tenth. " + WALK.format(point="method", row="row"),
            body=fairness_table(comparison, rows),
        ),
    ]
    if comparison.federation.subgroups:
        found.append(
            Section(
                "subgroups",
                "Subgroups inside clients",
                f"{capital(title)}{unit} by columns of the data, on test data, averaged over seeds. A subgroup's value "
                f"is the mean over the clients with at least {LEAST} of its test examples; one with fewer is counted "
                "but does not judge it. Clients differ from subgroup to subgroup, so a gap between small ones says "
                "little. The gap is between the best-served and the worst-served.",
                "Subgroups",
                body="".join(subgroups_table(comparison, rows, column) for column in comparison.federation.subgroups),
            )
        )
    if has["calibration"]:
        found.append(
            Section(
                "calibration",
                "Calibration",
                "Stated confidence against the share that is right, on test data of all seeds. On the dashed line, "
                "confidence is accurate; below it, a model is overconfident. Larger dots hold more examples.",
                "",
                chooser("calibrated", "Method", _titles(has["calibration"]))
                + (chooser("split", "Groups", [("", "all clients"), *((g, g) for g in groups)]) if groups else ""),
                "Calibration curves. " + WALK.format(point="bin", row="group"),
                key,
            )
        )
    if has["clusters"]:
        found.append(
            Section(
                "clusters",
                "Clusters, and who moved",
                "Each line is a client, each colour a cluster, until the chosen round of the first seed."
                + _proxies(comparison, has["clusters"]),
                "Clusters",
                chooser("clustered", "Method", _titles(has["clusters"])),
                "Clusters. " + WALK.format(point="stay", row="client"),
                key,
            )
        )
    if has["personal"]:
        found.append(
            Section(
                "map",
                "Which clients are alike",
                "What is personal in the clients' models, as a map: two principal components of the numbers in which "
                "they differ, at the chosen round of the first seed. Near means alike; a share far below 100 % means "
                "that two dimensions show little of it.",
                "Map",
                chooser("mapped", "Method", _titles(has["personal"]))
                + (chooser("tinted", "Colour", [("", "none"), *((g, g) for g in groups)]) if groups else ""),
                "Map of clients. " + WALK.format(point="client", row="row"),
                key,
            )
        )
    if has["cold"]:
        found.append(
            Section(
                "cold",
                "Unseen clients by labelled examples",
                "Mean over clients that were held out of training, by how many labelled examples each may use; "
                "nothing is chosen by these scores. With several seeds, the band spans the lowest to the highest.",
                "Unseen clients",
                "",
                "Unseen clients. " + WALK.format(point="budget", row="method"),
                legend,
            )
        )
    people = len(drawn["clients"])
    cut = f" The first {MOST_LINES} of {people:,} are listed; clients.csv has all." if people > MOST_LINES else ""
    found += [
        Section(
            "clients",
            "Every client",
            f"{capital(title)}{unit} of every client with every method, averaged over seeds. The stronger the tint, "
            f"the better; the best value of a client is bold. A name opens everything about that client.{cut}",
            "Clients",
            body='<div class="controls filter" hidden><label>Show clients whose name or metadata contains '
            '<input type="search" autocomplete="off" spellcheck="false"></label><output aria-live="polite"></output>'
            f"</div>{clients_table(comparison, rows, number)}",
            table=True,
        ),
        Section("tuning", "What was tuned", _about_tuning(comparison), "Tuning", body=tuning(comparison, rows, number)),
        Section("costs", "What a method takes", "", "Traffic and work", body=costs(comparison, rows), table=True),
        Section("sheet", "Data sheet of the federation", "", "Data sheet", body=sheet(comparison)),
        Section("how", "How it was done", "", body=how(comparison)),
        Section("words", "Glossary", "", body=f'<dl class="glossary">{glossary(shown)}</dl>'),
    ]
    return found


def _audited(rows: list[Row], audits: Mapping[str, Audit]) -> Section:
    titles = {row.name: row.title for row in rows if row.name in audits}
    ordered = {name: audits[name] for name in titles}
    return Section("audit", TITLE, escape(LEAD), "Audit", body=audits_body(ordered, titles))


def choice(drawn: dict[str, Any]) -> str:
    """The filter of clients by metadata."""
    if not drawn["groups"]:
        return ""
    selects = "".join(
        f'<label>{escape(name)} <select name="{escape(name)}"><option value="">all</option>'
        + "".join(
            f'<option value="{i}">{escape(label)} ({len(clients)})</option>' for i, (label, clients) in enumerate(found)
        )
        + "</select></label>"
        for name, found in drawn["groups"].items()
    )
    return (
        '<div class="choice" role="group" hidden aria-label="Choice of clients"><span>Clients with</span>'
        f'{selects}<button type="button">All clients</button><output aria-live="polite"></output></div>'
    )


def switch(name: str, legend: str, options: Sequence[tuple[str, str]]) -> str:
    """Radio buttons, the first one selected."""
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not i else ""}>'
        f"<span>{escape(words)}</span></label>"
        for i, (value, words) in enumerate(options)
    )
    return f'<fieldset class="switch"><legend>{legend}</legend>{labels}</fieldset>'


def chooser(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    """A drop-down list."""
    inner = "".join(f'<option value="{escape(value)}">{escape(words)}</option>' for value, words in options)
    return f'<label class="chooser">{label} <select name="{name}">{inner}</select></label>'


def facts(comparison: Comparison) -> str:
    """The compared data, methods and budget, in one line."""
    card, seeds = comparison.federation, max(len(m.seeds) for m in comparison.methods)
    total = sum(map(sum, card.sizes.values()))
    unseen = {name for m in comparison.methods for s in m.seeds if s.unseen for name in s.unseen.clients}
    parts = [
        card.kind + (f" in {len(card.classes)} classes" if card.classes else ""),
        count(len(comparison.methods[0].seeds[0].test.clients), "client"),
        *([count(len(unseen), "unseen client")] if unseen else []),
        count(total, "example"),
        count(len(comparison.methods), "method"),
        count(seeds, "seed"),
    ]
    return "".join(f"<span>{escape(fact)}</span>" for fact in parts)


def _proxies(comparison: Comparison, clustered: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for each method whose clusters are a proxy for metadata or for mixes of subgroups; HTML."""
    card, people = comparison.federation, comparison.methods[0].seeds[0].test.clients
    columns = {key: [values[card.places[name]] for name in people] for key, values in card.metadata.items()}
    mixes = {
        name: np.array(groups.sizes["train"])[:, [card.places[one] for one in people]].T.tolist()
        for name, groups in card.subgroups.items()
    }
    said = ""
    for method in clustered:
        now = method["clusters"]["now"]
        found = [f"{name} (adjusted mutual information {value:.2f})" for name, value in proxies(now, columns).items()]
        told = {name: explained(now, counts) for name, counts in mixes.items()}
        names = [
            *found,
            *(f"a client's mix of {name} (explained {value:.2f})" for name, value in told.items() if value >= PROXY),
        ]
        if names:
            said += (
                f" {method['title']}: its clusters are a proxy for {' and '.join(names)}. Who knows a client's cluster "
                "knows much of this, too; if it marks a protected group, the clusters treat the groups differently."
            )
    return escape(said)


def _titles(methods: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(m["name"], m["title"]) for m in methods]


def _curves(comparison: Comparison, legend: str) -> Section:
    axes = [("round", "rounds"), ("bytes", "bytes per client"), ("seconds", "seconds")]
    axes += [("hours", "simulated hours"), ("joules", "joules")] if hours.clocked(comparison) else []
    return Section(
        "curves",
        "Learning curves",
        _about_curves(comparison),
        "",
        switch("axis", "Horizontal axis", axes),
        "Learning curves. " + WALK.format(point="point", row="method"),
        legend,
    )


def _about_curves(comparison: Comparison) -> str:
    several = any(len(m.seeds) > 1 for m in comparison.methods)
    band = "the band spans the lowest to the highest seed" if several else "one seed, so there is no band"
    patience = comparison.settings.get("patience")
    ended = (
        f" A run ends after {count(patience, 'round')} without improvement; its last value is drawn for later rounds."
        if isinstance(patience, int)
        else ""
    )
    return (
        f"Mean {escape(comparison.metric.title)} over clients on validation data; {band}. "
        "A ring marks the round that validation chose in each seed. Choose which methods stand out in "
        "colour. Over bytes, a method that sends nothing is a horizontal line. A constant predictor that is far below "
        "all others is a note at the edge." + ended
    )


def _about_tuning(comparison: Comparison) -> str:
    trials = sum(len(method.trials) for method in comparison.methods)
    if not trials:
        return "Nothing was tuned: every method ran with its defaults."
    return f"{capital(count(trials, 'trial'))} in all, each scored on validation data; test data were never read."
