"""What an attack and a robust combination change, honest client by honest client, and who was left out or put apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from plures.evaluate.record import Watched
from plures.evaluate.results import Against, Comparison, MethodResult, Row
from plures.evaluate.scores import Floats
from plures.evaluate.summary import harmed, mean_known
from plures.report.columns import MISSING, Number, best, known, share
from plures.report.markup import capital, cell, count, heading, table
from plures.report.tables import MOST_LINES

OFTEN = 0.5
"""A client is flagged if its upload was left out in more than this share of the rounds that judged it."""
FLAGGED = (
    "Flagged: its upload was left out in more than half of the rounds that judged it, or it ended alone in a cluster. "
    "Such a client differs from the others. Why it does, rare data or an attack, its uploads do not say."
)
FIRST = (
    "Where a combination serves honest clients worse than the mean without attackers, their data differ so much that "
    "they look like an attack: try clusters or personal heads first."
)


def lead(comparison: Comparison) -> str:
    """What was attacked, and how it was combined, in a few sentences."""
    against = _of(comparison)
    parts = [attacked(against), combined(against)]
    if against.attackers:
        parts.append(f"Every score in this report is of {count(len(comparison.federation.clients), 'honest client')}.")
    without = " and ".join(["attackers"] * bool(against.attackers) + ["combination"] * (against.combine is not None))
    parts.append(f"Without: without {without}, with the same settings and seeds.")
    parts.append("Undefended: under attack, without the combination." if against.undefended else "")
    parts.append(FIRST if against.combine is not None else "")
    return " ".join(filter(None, parts))


def attacked(against: Against) -> str:
    """Who attacks, from when, with what; empty without attackers."""
    if not against.attackers:
        return ""
    names = ", ".join(against.attackers[:5]) + (", ..." if len(against.attackers) > 5 else "")
    since = f" from round {against.first}" if against.first > 1 else ""
    return f"Simulated attack: {against.attack} by {count(len(against.attackers), 'client')} ({names}){since}."


def combined(against: Against) -> str:
    """The combination, and how many attackers it is made to stand; empty without one."""
    if against.combine is None:
        return ""
    text = f"Combined by {against.combine}"
    if against.stands is None:
        text += ", which bounds what an upload can do and promises no number"
    else:
        text += f", made to stand {count(against.stands, 'hostile upload')} among the {against.cohort} of a round"
    if against.stands is not None and (attackers := len(against.attackers)):
        over = beyond(against.population, attackers, against.cohort, against.stands)
        if over == 1:
            text += f"; {count(attackers, 'client')} attack{'s' if attackers == 1 else ''}, which is more"
        elif over:
            text += (
                f"; with {attackers} attackers among {against.population} clients, more come in {share(over)} of rounds"
            )
    return f"{text}."


def beyond(clients: int, attackers: int, cohort: int, number: int) -> float:
    """Probability that more than a number of attackers are in a cohort that is drawn without replacement.

    Args:
        clients: number of all clients.
        attackers: how many of them attack.
        cohort: size of a cohort.
        number: the number.
    """
    ways = sum(
        math.comb(attackers, k) * math.comb(clients - attackers, cohort - k)
        for k in range(number + 1, min(attackers, cohort) + 1)
    )
    return ways / math.comb(clients, cohort)


def sentence(comparison: Comparison, rows: list[Row]) -> str:
    """What attack and combination did to the best method; empty without either."""
    against = comparison.against
    if against is None:
        return ""
    number, metric = Number.of(comparison, rows), comparison.metric.name
    parts = [attacked(against), combined(against)]
    if against.attackers:
        parts.append("Scores are of honest clients.")
    lead = best(comparison, [row for row in rows if _named(against.plain, row.name)] or rows)
    if (plain := _named(against.plain, lead.name)) is not None:
        words = f"{lead.title} has {number(lead.mean)}{number.unit()}"
        without = " and ".join(
            ["attackers"] * bool(against.attackers) + ["combination"] * (against.combine is not None)
        )
        words += f", without {without} {number(mean_known(plain.per_client(metric)))}"
        if (bare := _named(against.undefended, lead.name)) is not None:
            words += f", under attack without combination {number(mean_known(bare.per_client(metric)))}"
        parts.append(f"{words}.")
    return " ".join(filter(None, parts))


def body(comparison: Comparison, rows: list[Row]) -> str:
    """The tables; HTML."""
    number = Number.of(comparison, rows)
    parts = [
        _means(comparison, rows, number),
        _uncombined(comparison),
        _clients(comparison, rows, number),
        _doors(comparison, rows),
        _flags(comparison, rows),
        _clusters(comparison, rows),
    ]
    return "".join(filter(None, parts))


def _of(comparison: Comparison) -> Against:
    assert comparison.against is not None
    return comparison.against


def _named(methods: Sequence[MethodResult], name: str) -> MethodResult | None:
    return next((method for method in methods if method.name == name), None)


def _means(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """Every method beside itself without attackers and without defence."""
    against, metric = _of(comparison), comparison.metric
    falling, rising = ("descending", "ascending") if metric.higher else ("ascending", "descending")
    columns = [("mean", "as compared", falling), ("mean", "without", falling), ("difference", "", rising)]
    columns += [("clients", "worse off", "descending"), ("worst", "as compared", rising), ("worst", "without", rising)]
    if against.undefended:
        columns += [("mean", "undefended", falling), ("worst", "undefended", rising)]
    head = heading("method", "", kind="name") + "".join(heading(w, d, first=f) for w, d, f in columns)
    lines = []
    for row in rows:
        plain, bare = _named(against.plain, row.name), _named(against.undefended, row.name)
        if plain is None:
            continue
        own, before = comparison.method(row.name).per_client(metric.name), plain.per_client(metric.name)
        gap, worse = row.mean - mean_known(before), harmed(own, before, higher=metric.higher)
        cells = [_number(number, row.mean), _number(number, mean_known(before)), _signed(number, gap)]
        cells += [
            cell(share(worse), known(worse)),
            _number(number, row.worst),
            _number(number, _worst(comparison, before)),
        ]
        if against.undefended:
            values = None if bare is None else bare.per_client(metric.name)
            cells += [_number(number, None if values is None else mean_known(values))]
            cells += [_number(number, None if values is None else _worst(comparison, values))]
        lines.append(_row(row, against, cells))
    return table(
        "sortable", f"{capital(metric.title)} of honest clients, with and without attack and combination", head, lines
    )


def _worst(comparison: Comparison, values: Floats) -> float:
    if np.isnan(values).all():
        return math.nan
    return float(np.nanmin(values) if comparison.metric.higher else np.nanmax(values))


def _number(number: Number, value: float | None) -> str:
    return cell(number(value), known(value))


def _signed(number: Number, value: float) -> str:
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return cell(MISSING if known(value) is None else f"{sign}{number(abs(value))}", known(value))


def _row(row: Row, against: Against, cells: Sequence[str]) -> str:
    """The line of a method; the combination, which all of them share, is a note under its name."""
    name, ending = row.title, f" + {against.combine}"
    short = name.endswith(ending) and against.combine is not None
    return _line(name.removesuffix(ending) if short else name, cells, f"+ {against.combine}" if short else "")


def _line(name: str, cells: Sequence[str], note: str = "") -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<tr><th scope="row">{escape(name)}{small}</th>{"".join(cells)}</tr>'


def _uncombined(comparison: Comparison) -> str:
    """Methods that do not take the combination, each with the reason."""
    against = _of(comparison)
    lines = [
        f"<li>{escape(comparison.method(name).title)}: {escape(why)}</li>" for name, why in against.uncombined.items()
    ]
    return f"<p>Combined as ever:</p><ul>{''.join(lines)}</ul>" if lines else ""


def _clients(comparison: Comparison, rows: list[Row], number: Number) -> str:
    """The difference of every honest client to the mean without attackers, by method."""
    against, metric = _of(comparison), comparison.metric
    shown = [row for row in rows if _named(against.plain, row.name) is not None]
    found = []
    for row in shown:
        plain = _named(against.plain, row.name)
        assert plain is not None
        found.append(comparison.method(row.name).per_client(metric.name) - plain.per_client(metric.name))
    first = "ascending" if metric.higher else "descending"
    head = heading("client", "", kind="name") + "".join(heading(row.title, "", first=first) for row in shown)
    people = comparison.methods[0].seeds[0].test.clients[:MOST_LINES]
    lines = [_line(name, [_signed(number, float(gaps[i])) for gaps in found]) for i, name in enumerate(people)]
    title = f"{capital(metric.title)} of every honest client: as compared, minus without"
    return f"<h3>Every honest client</h3><p>{escape(title)}.</p>" + table("sortable clients", title, head, lines)


def _doors(comparison: Comparison, rows: list[Row]) -> str:
    """How often a backdoor opens, for the models that clients receive and for those that they predict with."""
    against = _of(comparison)
    which = [("as compared", comparison.methods), ("without", against.plain)]
    which += [("undefended", against.undefended)] if against.undefended else []
    head = heading("method", "", kind="name")
    for model in ("own model", "received model"):
        head += "".join(heading(model, detail, first="ascending") for detail, _ in which)
    head += heading("own model", "worst client")
    lines, found = [], False
    for row in rows:
        runs = [_named(methods, row.name) for _, methods in which]
        means = [_mean(_opened(run, part)) for part in ("personal", "shared") for run in runs]
        worst = max(_opened(runs[0], "personal").values(), default=None)
        found |= any(value is not None for value in means)
        lines.append(_row(row, against, [cell(share(value), value) for value in (*means, worst)]))
    if not found:
        return ""
    about = (
        "The share of honest clients' test examples of other classes that go to the attackers' class once they have "
        "the trigger. Without attackers it is what the trigger does by itself."
    )
    return f"<h3>How often the backdoor opens</h3><p>{about}</p>" + table(
        "sortable", "Success of the backdoor", head, lines
    )


def _opened(method: MethodResult | None, part: str) -> dict[str, float]:
    """By client, the success of the backdoor, averaged over seeds."""
    runs = [getattr(one, part) for one in _watched(method)]
    names = {name for run in runs for name in run}
    return {name: float(np.mean([run[name] for run in runs if name in run])) for name in sorted(names)}


def _mean(values: dict[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _watched(method: MethodResult | None) -> list[Watched]:
    seeds = [] if method is None else method.seeds
    return [seed.watched for seed in seeds if seed.watched is not None]


def flagged(seen: Watched) -> set[str]:
    """The clients that a run left out often, or that ended alone in a cluster."""
    found = {name for name, part in seen.left_out.items() if part > OFTEN}
    for members in seen.clusters.values():
        sizes = Counter(members.values())
        found |= {name for name, cluster in members.items() if sizes[cluster] == 1 and len(sizes) > 1}
    return found


def rates(method: MethodResult, against: Against) -> tuple[float | None, float | None]:
    """Shares of the attackers and of the honest clients that were flagged, averaged over seeds; ``None`` for nobody."""
    runs, hostile = _watched(method), set(against.attackers)
    judged = [(flagged(run), {*run.left_out, *(n for m in run.clusters.values() for n in m)}) for run in runs]

    def part(wanted: Callable[[str], bool]) -> float | None:
        found = [(len(set(filter(wanted, some))), len(set(filter(wanted, all_)))) for some, all_ in judged]
        known_ones = [some / total for some, total in found if total]
        return float(np.mean(known_ones)) if known_ones else None

    return part(lambda name: name in hostile), part(lambda name: name not in hostile)


def _flags(comparison: Comparison, rows: list[Row]) -> str:
    """Detection and false alarms of every method that leaves clients out or puts them apart, and of whom."""
    against, lines, people = _of(comparison), [], list[str]()
    parts: dict[str, list[float]] = {}
    for row in rows:
        method = comparison.method(row.name)
        detected, alarms = rates(method, against)
        if detected is None and alarms is None:
            continue
        lines.append(_row(row, against, [cell(share(detected), detected), cell(share(alarms), alarms)]))
        if some := dict(_left_out(method)):
            people.append(row.title)
            for name, part in some.items():
                parts.setdefault(name, [math.nan] * len(rows))[len(people) - 1] = part
    if not lines:
        return ""
    head = heading("method", "", kind="name") + heading("flagged", "of the attackers", first="descending")
    head += heading("flagged", "of the honest", first="descending")
    found = table("sortable", "Flagged clients", head, lines)
    if parts:
        head = heading("client", "", kind="name") + "".join(heading(t, "left out", first="descending") for t in people)
        hostile = set(against.attackers)
        ordered = sorted(parts, key=lambda name: name not in hostile)[:MOST_LINES]
        inner = [
            _line(name, [cell(share(v), known(v)) for v in parts[name][: len(people)]], "attacks" * (name in hostile))
            for name in ordered
        ]
        found += table("sortable clients", "How often each client's upload was left out", head, inner)
    return f"<h3>Who was left out or put apart</h3><p>{FLAGGED}</p>{found}"


def _left_out(method: MethodResult) -> Iterator[tuple[str, float]]:
    """How often every client was left out, averaged over seeds."""
    runs = _watched(method)
    for name in dict.fromkeys(name for run in runs for name in run.left_out):
        yield name, float(np.mean([run.left_out[name] for run in runs if name in run.left_out]))


def _clusters(comparison: Comparison, rows: list[Row]) -> str:
    """Who ended in which cluster in the first seed, attackers apart."""
    against, lines = _of(comparison), []
    if not against.attackers:
        return ""
    hostile = set(against.attackers)
    for row in rows:
        for watched in _watched(comparison.method(row.name))[:1]:
            for members in watched.clusters.values():
                for cluster in sorted(set(members.values())):
                    inside = [name for name, own in members.items() if own == cluster]
                    cells = [f'<td class="text">{cluster}</td>']
                    for some in ([n for n in inside if n not in hostile], [n for n in inside if n in hostile]):
                        cells.append(f'<td class="text wide">{escape(", ".join(some[:MOST_LINES])) or MISSING}</td>')
                    lines.append(_row(row, against, cells))
    if not lines:
        return ""
    head = heading("method", "", kind="name")
    head += "".join(heading(words, "", kind="text") for words in ("cluster", "honest clients", "attackers"))
    return "<h3>Who was put where</h3><p>Clusters at the end of the first seed.</p>" + table(
        "", "Clusters", head, lines
    )
