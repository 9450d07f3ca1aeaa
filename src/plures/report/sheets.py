"""How it was done: settings, environment, costs, tuning, the data sheet, the glossary."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from plures.evaluate.results import POOLED, Comparison, FederationCard, MethodResult, Row
from plures.report.columns import MISSING, Column, Number, known, significant
from plures.report.markup import capital, cell, count, heading, in_bytes, listing, scaled, table, whole
from plures.report.tables import MOST_LINES

BAR_HEIGHT = 16


def how(comparison: Comparison) -> str:
    """Settings, environment, seeds and commands."""
    settings = {key: value for key, value in comparison.settings.items() if key != "command"}
    seeds = sorted({seed.seed for method in comparison.methods for seed in method.seeds})
    return "".join(
        [
            '<div class="pair"><div><h3>Settings</h3>',
            listing(settings),
            "</div><div><h3>Environment</h3>",
            listing({**comparison.environment, "seeds of the runs": seeds}),
            "</div></div><h3>Reproduce</h3>",
            f'<pre tabindex="0" aria-label="Commands"><code>{escape(commands(comparison))}</code></pre>',
        ]
    )


def commands(comparison: Comparison) -> str:
    """Commands that reproduce these numbers."""
    versions = {
        name: comparison.environment[name].partition("+")[0]
        for name in ("plures", "torch")
        if name in comparison.environment
    }
    lines = [f"pip install {' '.join(f'{name}=={version}' for name, version in versions.items())}"] if versions else []
    command = comparison.settings.get("command")
    return "\n".join([*lines, str(command) if command else "# made from Python: plures.evaluate.compare(...)"])


def tuning(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """What was tuned, over which values, at what cost, and all trials."""
    found = [comparison.method(row.name) for row in rows]
    rounds = comparison.settings.get("tune_rounds")
    head = heading("method", "", kind="name") + heading("tuned", "", kind="text")
    head += heading("chosen", "", kind="text") + heading("trials", "", first="descending")
    head += heading("rounds", "in trials", first="descending")
    head += heading("traffic", "in trials, per client", first="descending")
    lines = []
    for method in found:
        spent = len(method.trials) * rounds if isinstance(rounds, int) else None
        sent = None if spent is None else spent * (method.bytes_up + method.bytes_down) * drawn(comparison, method)
        cells = [
            f'<td class="text wide">{escape(tried(method)) or MISSING}</td>',
            f'<td class="text wide">{escape(_setting(method.lr, method.parameters)) or MISSING}</td>',
            cell(whole(len(method.trials)), len(method.trials)),
            cell(whole(spent), spent),
            cell(MISSING if sent is None else in_bytes(sent), sent),
        ]
        lines.append(f'<tr><th scope="row">{escape(method.title)}</th>{"".join(cells)}</tr>')
    overview = table("sortable", "What was tuned, and at what cost", head, lines)
    return overview + "<h3>Every trial</h3>" + "".join(_tuning(method, number) for method in found)


def tried(method: MethodResult) -> str:
    """The values that were tried of every setting."""
    values: dict[str, list[Any]] = {}
    for trial in method.trials:
        for name, value in {"learning rate": trial.lr, **trial.parameters}.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return "; ".join(f"{name}: {', '.join(map(brief, some))}" for name, some in values.items())


def costs(comparison: Comparison, rows: list[Row]) -> str:
    """Traffic, storage and computation of every method."""
    head = heading("method", "", kind="name") + "".join(
        heading(words, detail, first="ascending")
        for words, detail in (
            ("up", "per round"),
            ("down", "per round"),
            ("stored", "on a client"),
            ("operations", "per visit"),
            ("visits", "till chosen"),
            ("traffic", "till chosen"),
        )
    )
    together = any(row.name == POOLED for row in rows)
    lines = []
    for row in rows:
        method = comparison.method(row.name)
        cells = [cell(in_bytes(n), n) for n in (method.bytes_up, method.bytes_down, method.stored)]
        cells += [cell(scaled(method.flops, ""), method.flops), cell(significant(row.visits), known(row.visits))]
        sent = known(row.megabytes * 1e6)
        cells.append(cell(MISSING if sent is None else in_bytes(sent), sent))
        lines.append(f'<tr><th scope="row">{escape(row.title)}</th>{"".join(cells)}</tr>')
    about = "<p>Pooled sends the training examples themselves, once.</p>" if together else ""
    return table("sortable", "Cost of every method for one client, on average over all clients", head, lines) + about


def drawn(comparison: Comparison, method: MethodResult) -> float:
    """Share of the clients that take part in a round, on average over a method's final runs; 1 if unknown."""
    ends = [seed.curve[-1] for seed in method.seeds if seed.curve and seed.curve[-1].visits]
    shares = [end.visits / (end.round * comparison.federation.trained) for end in ends]
    return float(np.mean(shares)) if shares else 1.0


def _tuning(method: MethodResult, number: Number) -> str:
    """The settings of one method, and all its trials."""
    chosen = _setting(method.lr, method.parameters)
    summary = (
        f"<summary><b>{escape(method.title)}</b> <span>{escape(chosen)}</span> "
        f"<span>{count(len(method.trials), 'trial')}</span></summary>"
    )
    text = f'<p class="cite">{escape(method.family)}. {escape(method.citation)}</p>'
    if not method.trials:
        return f"<details>{summary}{text}<p>Nothing was tuned.</p></details>"
    head = heading("setting", "", kind="name") + heading("validation", "best of short run", first="descending")
    lines = []
    for trial in method.trials:
        setting = _setting(trial.lr, trial.parameters)
        mark = '<span class="tag">chosen</span>' if setting == chosen else ""
        value = cell(number(trial.validation), known(trial.validation))
        lines.append(f'<tr><th scope="row">{escape(setting)}{mark}</th>{value}</tr>')
    text += "<p>Parameters that a line does not name had their defaults.</p>"
    return f"<details>{summary}{text}{table('sortable trials', f'Trials of {method.title}', head, lines)}</details>"


def _people(card: FederationCard) -> str:
    listed = len(card.clients)
    return f"{listed:,}" if card.population is None else f"{listed:,} sampled of {card.population:,}"


def sheet(comparison: Comparison) -> str:
    """The federation: source, sizes and label counts of every client."""
    card = comparison.federation
    totals = [
        f"{split} {sum(sizes):,} (per client {min(sizes):,} to {max(sizes):,}, median {np.median(sizes):,.0f})"
        for split, sizes in card.sizes.items()
        if sizes
    ]
    facts = {"source and licence": card.source or MISSING, "clients": _people(card), "examples": "; ".join(totals)}
    if card.hostile:
        facts["attackers, not scored"] = ", ".join(card.hostile)
    if card.classes:
        facts["classes"] = ", ".join(card.classes)
    head = heading("client", "", kind="name")
    head += "".join(heading("examples", split, first="descending") for split in card.sizes)
    head += '<th scope="col" class="text">labels, training data</th>' if card.labels else ""
    head += "".join(heading(key, "", kind="text") for key in card.metadata)
    lines = []
    for i, name in enumerate(card.clients[:MOST_LINES]):
        cells = [cell(whole(sizes[i]), sizes[i]) for sizes in card.sizes.values()]
        if card.labels:
            cells.append(f'<td class="text">{_bars(card.labels[i], card.classes)}</td>')
        cells += [f'<td class="text">{escape(values[i])}</td>' for values in card.metadata.values()]
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    sizes = table("sortable", "Sizes and labels of every client", head, lines)
    summary = "<summary><b>Every client's data</b> <span>sizes and labels</span></summary>"
    return f"{listing(facts)}<details>{summary}{sizes}</details>"


def _bars(counts: Sequence[int], classes: Sequence[str]) -> str:
    """Label counts as small bars, the tallest filling the height."""
    top, step = max([*counts, 1]), max(2, min(10, 160 // max(1, len(counts))))
    text = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=False))
    path = "".join(
        f"M{i * step} {BAR_HEIGHT}v{-max(BAR_HEIGHT * count / top, 0.5 if count else 0):.1f}h{step - 1}V{BAR_HEIGHT}z"
        for i, count in enumerate(counts)
    )
    return (
        f'<svg class="bars" role="img" width="{step * len(counts)}" height="{BAR_HEIGHT + 1}" '
        f'aria-label="{escape(text)}"><title>{escape(text)}</title><path d="{path}"/>'
        f'<path class="floor" d="M0 {BAR_HEIGHT}.5H{step * len(counts)}"/></svg>'
    )


def glossary(shown: Sequence[Column]) -> str:
    """One line per term."""
    words = {f"{c.heading} {c.detail}": c.meaning for c in shown if c.key != "mean"}
    mean = next(c.meaning for c in shown if c.key == "mean")
    more = {
        "p vs fine-tuned": (
            "paired sign-flip test over clients against FedAvg + fine-tuning; it is not corrected for the number of "
            "methods compared."
        ),
        "client": "one owner of data, who keeps them; each gets its own model.",
        "harmed": "a client whose score, averaged over seeds, is worse than with the reference, by any amount.",
        "Local only": "every client trains alone: what personalization must not fall below.",
        "FedAvg": "one global model for all clients.",
        "fine-tuning": "FedAvg's model, trained on by every client: the baseline that a method must beat.",
    }
    return "".join(
        f"<div><dt>{escape(word)}</dt><dd>{escape(capital(text))}</dd></div>"
        for word, text in {"mean ± 95 % CI": mean, **words, **more}.items()
    )


def _setting(lr: float | None, parameters: dict[str, Any]) -> str:
    rate = {} if lr is None else {"learning rate": lr}
    return ", ".join(f"{name} {brief(value)}" for name, value in {**rate, **parameters}.items())


def brief(value: Any) -> str:
    """A setting as text; a number without the digits that only its rounding has."""
    return f"{value:.6g}" if isinstance(value, float) and value != round(value, 6) else str(value)
