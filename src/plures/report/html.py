"""The comparison as one HTML file that needs nothing else: no network, no fonts, no library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from plures import __version__
from plures.evaluate.results import BASELINES, Comparison, MethodResult, Row
from plures.evaluate.scores import Floats
from plures.report.columns import MISSING, Column, Number, best, columns, known, probability, significant
from plures.report.table import describe_metric, verdict

QUARTILES = (0.25, 0.5, 0.75)
BAR_HEIGHT = 16


def html_report(comparison: Comparison) -> str:
    """The whole report as the text of one HTML file."""
    rows = comparison.rows()
    shown = columns(comparison, rows)
    number = Number.of(comparison, rows)
    metric = comparison.metric
    page = {
        "name": escape(comparison.federation.name),
        "facts": _facts(comparison),
        "headline": escape(verdict(comparison, rows)),
        "what": _capital(escape(describe_metric(comparison))),
        "metric": escape(metric.title),
        "metric_title": _capital(escape(metric.title)),
        "unit": ", %," if metric.percent else "",
        "methods": _methods(comparison, rows, shown),
        "references": _references(comparison),
        "curves": _about_curves(comparison),
        "clients": _clients(comparison, rows, number),
        "how": _how(comparison, rows, number),
        "glossary": _glossary(shown),
        "version": __version__,
        "data": embed(document(comparison, rows)),
        "css": _file("page.css"),
        "js": _file("page.js"),
    }
    return Template(_file("page.html")).substitute(page)


def document(comparison: Comparison, rows: list[Row]) -> dict[str, Any]:
    """What the charts draw, as plain JSON values; methods in the order of the table."""
    metric, card = comparison.metric, comparison.federation
    winner = best(comparison, rows)
    people = comparison.methods[0].seeds[0].test.clients
    return {
        "federation": card.name,
        "metric": {
            "title": metric.title,
            "higher": metric.higher,
            "percent": metric.percent,
            "decimals": Number.of(comparison, rows).decimals,
        },
        "seeds": max(len(m.seeds) for m in comparison.methods),
        "clients": [
            {"name": name, "train": _train(comparison, name), "about": _about(comparison, name)} for name in people
        ],
        "methods": [_drawn(comparison, row, best=row is winner) for row in rows],
    }


def embed(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever the names in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _drawn(comparison: Comparison, row: Row, *, best: bool) -> dict[str, Any]:
    """What the charts need of one method."""
    method = comparison.method(row.name)
    values = method.per_client(comparison.metric.name)
    found = values[~np.isnan(values)]
    return {
        "name": row.name,
        "title": row.title,
        "baseline": row.name in BASELINES,
        "best": best,
        "values": _plain(values),
        "mean": known(row.mean),
        "box": [float(q) for q in np.quantile(found, QUARTILES)] if len(found) else [],
        "worst": known(row.worst),
        "bottom": known(row.bottom),
        "chosen": [seed.chosen_round for seed in method.seeds],
        "curve": curve(method),
    }


def curve(method: MethodResult) -> list[dict[str, float | None]]:
    """The learning curve over seeds: mean, least and greatest validation score; bytes per client; seconds."""
    clients = len(method.seeds[0].validation.clients)
    points: dict[int, list[Any]] = {}
    for seed in method.seeds:
        for point in seed.curve:
            points.setdefault(point.round, []).append(point)
    return [
        {
            "round": place,
            "mean": known(float(np.mean([p.validation for p in points[place]]))),
            "least": known(float(np.min([p.validation for p in points[place]]))),
            "most": known(float(np.max([p.validation for p in points[place]]))),
            "bytes": float(np.mean([p.bytes for p in points[place]])) / clients,
            "seconds": float(np.mean([p.seconds for p in points[place]])),
        }
        for place in sorted(points)
    ]


def _facts(comparison: Comparison) -> str:
    """What was compared, in one line."""
    card, seeds = comparison.federation, max(len(m.seeds) for m in comparison.methods)
    total = sum(map(sum, card.sizes.values()))
    unseen = {name for m in comparison.methods for s in m.seeds if s.unseen for name in s.unseen.clients}
    facts = [
        card.kind + (f" in {len(card.classes)} classes" if card.classes else ""),
        _count(len(comparison.methods[0].seeds[0].test.clients), "client"),
        *([_count(len(unseen), "unseen client")] if unseen else []),
        _count(total, "example"),
        _count(len(comparison.methods), "method"),
        _count(seeds, "seed"),
    ]
    return "".join(f"<span>{escape(fact)}</span>" for fact in facts)


def _about_curves(comparison: Comparison) -> str:
    several = any(len(m.seeds) > 1 for m in comparison.methods)
    band = "the band spans the lowest to the highest seed" if several else "one seed, therefore no band"
    return (
        f"Mean {escape(comparison.metric.title)} over clients on validation data; {band}. "
        "A ring marks the round that validation chose in each seed. Choose which methods stand out in "
        "colour. Over bytes, a method that sends nothing is a level line."
    )


def _references(comparison: Comparison) -> str:
    """The switch between references."""
    return "".join(
        f'<label><input type="radio" name="reference" value="{name}"{checked}>'
        f"<span>{escape(comparison.method(name).title)}</span></label>"
        for name, checked in zip(BASELINES, (" checked", "", ""), strict=True)
    )


def _methods(comparison: Comparison, rows: list[Row], shown: Sequence[Column]) -> str:
    """The table of methods, with each mean and its interval drawn on one scale."""
    winner = best(comparison, rows)
    means = [row for row in rows if known(row.mean) is not None]
    low = min((r.mean - (r.mean_ci or 0) for r in means), default=0.0)
    high = max((r.mean + (r.mean_ci or 0) for r in means), default=1.0)
    head = _heading("method", "", kind="name") + "".join(
        _heading(c.heading, c.detail, first="ascending" if c.rising else "descending") for c in shown
    )
    head += _heading("p", "vs fine-tuned", first="ascending")
    lines = []
    for row in rows:
        cells = []
        for column in shown:
            drawn = _interval(row, low, high) if column.key == "mean" else ""
            cells.append(_cell(column.write(row) + drawn, column.value(row), "mean" if column.key == "mean" else ""))
        itself = row.name == "fedavg_ft"
        p = MISSING if itself else escape(probability(row.p_value).removeprefix("p = ").removeprefix("p "))
        cells.append(_cell(p, None if itself else row.p_value))
        kind = " ".join(filter(None, ["baseline" if row.name in BASELINES else "", "best" if row is winner else ""]))
        words = ["best mean"] * (row is winner) + ["baseline"] * (row.name in BASELINES)
        note = f"<small>{', '.join(words)}</small>" if words else ""
        lines.append(f'<tr class="{kind}"><th scope="row">{escape(row.title)}{note}</th>{"".join(cells)}</tr>')
    return _table("sortable methods", "Methods over all clients and seeds", head, lines)


def _interval(row: Row, low: float, high: float) -> str:
    """A mean and its interval, drawn between the least and the greatest of the table."""
    if known(row.mean) is None or high <= low:
        return ""
    width = row.mean_ci or 0.0
    left, middle, right = (100 * (x - low) / (high - low) for x in (row.mean - width, row.mean, row.mean + width))
    return (
        f'<span class="interval" aria-hidden="true" style="--l:{left:.1f}%;--w:{right - left:.1f}%;--m:{middle:.1f}%">'
        "<i></i><b></b></span>"
    )


def _clients(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """Clients by methods: sizes, values, and a tint that grows with the value."""
    metric = comparison.metric
    people = comparison.methods[0].seeds[0].test.clients
    table = np.stack([comparison.method(row.name).per_client(metric.name) for row in rows], axis=1)
    lines = [(name, _train(comparison, name), table[i], False) for i, name in enumerate(people)]
    held = [_unseen(comparison.method(row.name), metric.name) for row in rows]
    for name in dict.fromkeys(name for values in held for name in values):
        lines.append((name, None, np.array([values.get(name, np.nan) for values in held]), True))
    everything = np.concatenate([values for _, _, values, _ in lines])
    finite = everything[np.isfinite(everything)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    scored = [s for run in comparison.methods[0].seeds for s in (run.unseen, run.test) if s is not None]
    tests = {name: size for s in scored for name, size in zip(s.clients, s.sizes, strict=True)}
    head = _heading("client", "", kind="name") + _heading("examples", "train", first="descending")
    head += _heading("examples", "test", first="descending")
    head += "".join(_heading(row.title, "", first="descending" if metric.higher else "ascending") for row in rows)
    body = []
    for name, train, values, unseen in lines:
        about = _about(comparison, name)
        note = f"<small>{escape(' · '.join(about))}</small>" if about else ""
        tag = '<span class="tag quiet">unseen</span>' if unseen else ""
        good = [v if metric.higher else -v for v in values if np.isfinite(v)]
        cells = [_cell(_whole(train), train), _cell(_whole(tests.get(name)), tests.get(name))]
        for value in values:
            tint = _tint(value, low, high, higher=metric.higher)
            top = good and np.isfinite(value) and (value if metric.higher else -value) == max(good)
            cells.append(_cell(number(value), known(value), "heat top" if top else "heat", tint))
        body.append(f'<tr><th scope="row">{escape(name)}{tag}{note}</th>{"".join(cells)}</tr>')
    return _table("sortable clients", f"{metric.title} of every client with every method", head, body)


def _how(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """Settings, tuning, cost, data and environment."""
    return "".join(
        [
            '<div class="pair"><div><h3>Settings</h3>',
            _list(comparison.settings),
            "</div><div><h3>Environment</h3>",
            _list(comparison.environment),
            "</div></div><h3>What a method costs</h3>",
            _costs(comparison, rows),
            "<h3>Methods, their settings and their tuning</h3>",
            "".join(_tuning(comparison.method(row.name), number) for row in rows),
            "<h3>Federation</h3>",
            _sheet(comparison),
        ]
    )


def _costs(comparison: Comparison, rows: list[Row]) -> str:
    """Traffic, storage and computation of every method."""
    head = _heading("method", "", kind="name") + "".join(
        _heading(heading, detail, first="ascending")
        for heading, detail in (
            ("up", "per round"),
            ("down", "per round"),
            ("stored", "on a client"),
            ("operations", "per visit"),
            ("traffic", "till chosen"),
        )
    )
    lines = []
    for row in rows:
        method = comparison.method(row.name)
        cells = [_cell(_bytes(n), n) for n in (method.bytes_up, method.bytes_down, method.stored)]
        cells += [_cell(_scaled(method.flops, ""), method.flops), _cell(_bytes(row.megabytes * 1e6), row.megabytes)]
        lines.append(f'<tr><th scope="row">{escape(row.title)}</th>{"".join(cells)}</tr>')
    return _table("sortable", "Cost of every method for one client", head, lines)


def _tuning(method: MethodResult, number: Number) -> str:
    """How one method was set, and everything that was tried."""
    chosen = _setting(method.lr, method.parameters)
    summary = (
        f"<summary><b>{escape(method.title)}</b> <span>{escape(chosen)}</span> "
        f"<span>{_count(len(method.trials), 'trial')}</span></summary>"
    )
    told = f'<p class="cite">{escape(method.family)}. {escape(method.citation)}</p>'
    if not method.trials:
        return f"<details>{summary}{told}<p>Nothing was tuned.</p></details>"
    head = _heading("setting", "", kind="name") + _heading("validation", "best of short run", first="descending")
    lines = []
    for trial in method.trials:
        setting = _setting(trial.lr, trial.parameters)
        mark = '<span class="tag">chosen</span>' if setting == chosen else ""
        cell = _cell(number(trial.validation), known(trial.validation))
        lines.append(f'<tr><th scope="row">{escape(setting)}{mark}</th>{cell}</tr>')
    told += "<p>What a line does not name was at its default.</p>"
    return f"<details>{summary}{told}{_table('sortable trials', f'Trials of {method.title}', head, lines)}</details>"


def _sheet(comparison: Comparison) -> str:
    """The federation: source, sizes and label counts of every client."""
    card = comparison.federation
    totals = [
        f"{split} {sum(sizes):,} (per client {min(sizes):,} to {max(sizes):,}, median {np.median(sizes):,.0f})"
        for split, sizes in card.sizes.items()
        if sizes
    ]
    facts = {"source and licence": card.source or MISSING, "clients": len(card.clients), "examples": "; ".join(totals)}
    if card.classes:
        facts["classes"] = ", ".join(card.classes)
    head = _heading("client", "", kind="name")
    head += "".join(_heading("examples", split, first="descending") for split in card.sizes)
    head += '<th scope="col" class="text">labels, training data</th>' if card.labels else ""
    head += "".join(_heading(key, "", kind="text") for key in card.metadata)
    lines = []
    for i, name in enumerate(card.clients):
        cells = [_cell(_whole(sizes[i]), sizes[i]) for sizes in card.sizes.values()]
        if card.labels:
            cells.append(f'<td class="text">{_bars(card.labels[i], card.classes)}</td>')
        cells += [f'<td class="text">{escape(values[i])}</td>' for values in card.metadata.values()]
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    table = _table("sortable", "Sizes and labels of every client", head, lines)
    summary = "<summary><b>Every client's data</b> <span>sizes and labels</span></summary>"
    return f"{_list(facts)}<details>{summary}{table}</details>"


def _bars(counts: Sequence[int], classes: Sequence[str]) -> str:
    """Label counts as small bars, the tallest filling the height."""
    top, step = max([*counts, 1]), max(2, min(10, 160 // max(1, len(counts))))
    told = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=False))
    path = "".join(
        f"M{i * step} {BAR_HEIGHT}v{-max(BAR_HEIGHT * count / top, 0.5 if count else 0):.1f}h{step - 1}V{BAR_HEIGHT}z"
        for i, count in enumerate(counts)
    )
    return (
        f'<svg class="bars" role="img" width="{step * len(counts)}" height="{BAR_HEIGHT + 1}" '
        f'aria-label="{escape(told)}"><title>{escape(told)}</title><path d="{path}"/>'
        f'<path class="floor" d="M0 {BAR_HEIGHT}.5H{step * len(counts)}"/></svg>'
    )


def _glossary(shown: Sequence[Column]) -> str:
    """One line for every word."""
    words = {f"{c.heading} {c.detail}": c.meaning for c in shown if c.key != "mean"}
    mean = next(c.meaning for c in shown if c.key == "mean")
    more = {
        "p vs fine-tuned": (
            "paired sign-flip test over clients against FedAvg + fine-tuning; it is not corrected for the number of "
            "methods compared."
        ),
        "client": "one owner of data, who keeps them; each gets a model of its own.",
        "harmed": "a client whose score, averaged over seeds, is worse than with the reference, by however little.",
        "Local only": "every client trains alone: what personalization must not fall below.",
        "FedAvg": "one global model for all clients.",
        "fine-tuning": "FedAvg's model, trained on by every client: the baseline that a method must beat.",
    }
    return "".join(
        f"<div><dt>{escape(word)}</dt><dd>{escape(_capital(text))}</dd></div>"
        for word, text in {"mean ± 95 % CI": mean, **words, **more}.items()
    )


def _table(kind: str, caption: str, head: str, lines: Sequence[str]) -> str:
    """A table that scrolls sideways in a region of its own."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f'<caption class="hidden">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _heading(heading: str, detail: str, *, first: str = "ascending", kind: str = "number") -> str:
    """A heading; the page makes a button of it that sorts, in the direction ``first`` to begin with."""
    small = f"<small>{escape(detail)}</small>" if detail else ""
    return f'<th scope="col" class="{kind}" data-first="{first}"><span>{escape(heading)}{small}</span></th>'


def _cell(content: str, value: float | None, kind: str = "", style: str = "") -> str:
    """A cell with the number by which it sorts; no number sorts last."""
    named = {"data-value": "" if known(value) is None else repr(value), "class": kind, "style": style}
    attributes = "".join(f' {name}="{text}"' for name, text in named.items() if text)
    return f"<td{attributes}>{content}</td>"


def _tint(value: float, low: float, high: float, *, higher: bool) -> str:
    if not np.isfinite(value) or high <= low:
        return ""
    part = (value - low) / (high - low)
    return f"--h:{100 * (part if higher else 1 - part):.0f}%"


def _list(values: Mapping[str, Any]) -> str:
    """A list of names and values."""
    told = "".join(
        f"<div><dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(_told(v))}</dd></div>" for k, v in values.items()
    )
    return f"<dl>{told}</dl>"


def _told(value: Any) -> str:
    """A setting in words: lists with commas, tables as ``name: value``, nothing as a dash."""
    if value is None or value in ("", [], (), {}):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_told(inner)}" for name, inner in value.items())
    return ", ".join(map(_told, value)) if isinstance(value, list | tuple) else str(value)


def _setting(lr: float, parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in {"learning rate": lr, **parameters}.items())


def _unseen(method: MethodResult, metric: str) -> dict[str, float]:
    """Unseen clients and their values, averaged over the seeds in which they were held out."""
    found: dict[str, list[float]] = {}
    for seed in method.seeds:
        if seed.unseen is not None:
            for name, value in zip(seed.unseen.clients, seed.unseen.values(metric), strict=True):
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _train(comparison: Comparison, client: str) -> int | None:
    """Training examples of a client."""
    card = comparison.federation
    return card.sizes["train"][card.clients.index(client)] if client in card.clients and "train" in card.sizes else None


def _about(comparison: Comparison, client: str) -> list[str]:
    """A client's metadata."""
    card = comparison.federation
    if client not in card.clients:
        return []
    place = card.clients.index(client)
    return [f"{key} {values[place]}" for key, values in card.metadata.items()]


def _plain(values: Floats) -> list[float | None]:
    return [known(float(v)) for v in values]


def _whole(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _bytes(count: float) -> str:
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    """A count with a decimal prefix and three digits."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{significant(count / limit)} {prefix}{unit}"
    return f"{significant(count)} {unit}".strip()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _file(name: str) -> str:
    return files("plures.report").joinpath(name).read_text(encoding="utf-8")
