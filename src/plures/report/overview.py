"""The first screen of a study: data by methods, with ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from plures.evaluate.results import Comparison, Row
from plures.report.columns import MISSING, Number, best, known
from plures.report.markup import cell, count, heading, table


def ranks(comparison: Comparison, rows: Sequence[Row]) -> dict[str, float]:
    """Every method's rank by its mean, 1 for the best; ties share the mean of their ranks."""
    sign = -1 if comparison.metric.higher else 1
    values = {row.name: sign * row.mean for row in rows if known(row.mean) is not None}
    return {
        name: 1 + sum(other < value for other in values.values()) + (sum(o == value for o in values.values()) - 1) / 2
        for name, value in values.items()
    }


def overview(
    comparisons: Sequence[Comparison], rows: Sequence[list[Row]], title: str, names: Sequence[str], begin: str = ""
) -> str:
    """A line per comparison and a column per method; a line's button opens it.

    What it may ``begin`` with comes instead of the title and of the answer over all comparisons. Then there are no mean
    ranks, either: the comparisons of a use case differ in what they ask.

    Mean ranks include only methods that take part in every comparison: a method that was tried only where it does well
    would otherwise seem better than it is.
    """
    titles = {row.name: row.title for lines in rows for row in lines}
    found = [ranks(comparison, lines) for comparison, lines in zip(comparisons, rows, strict=True)]
    common = [name for name in titles if all(name in ranked for ranked in found)]
    among = [
        ranks(comparison, [row for row in lines if row.name in common])
        for comparison, lines in zip(comparisons, rows, strict=True)
    ]
    mean = {name: float(np.mean([ranked[name] for ranked in among])) for name in common}
    order = sorted(titles, key=lambda name: mean.get(name, np.inf))
    head = heading("comparison" if begin else "data", "", kind="name") + "".join(
        heading(titles[name], "", first="ascending") for name in order
    )
    lines = []
    for place, (comparison, own, ranked) in enumerate(zip(comparisons, rows, found, strict=True)):
        number, by_name = Number.of(comparison, own), {row.name: row for row in own}
        cells = [_cell(by_name.get(name), ranked.get(name), number, len(ranked), place) for name in order]
        lines.append(
            f'<tr><th scope="row"><button type="button" class="link" data-open="{place}" '
            f'aria-pressed="{"false" if place else "true"}"{"" if place else " data-now"}>'
            f"{escape(names[place])}</button><small>{escape(comparison.metric.title)}"
            f"{', %' if comparison.metric.percent else ''}</small></th>{''.join(cells)}</tr>"
        )
    if not begin:
        if over := _over(comparisons, rows, common):
            number = Number.among(comparisons[0].metric, [value for value, _ in over.values()])
            spread = "".join(
                cell(f"{number(over[name][0])} ± {number(over[name][1])}", over[name][0])
                if name in over
                else cell(MISSING, None)
                for name in order
            )
            first = '<th scope="row">mean ± std<small>over the lines above</small></th>'
            lines.append(f'<tr class="total">{first}{spread}</tr>')
        means = "".join(cell(f"{mean[name]:.2f}" if name in mean else MISSING, mean.get(name)) for name in order)
        lines.append(f'<tr class="total"><th scope="row">mean rank</th>{means}</tr>')
    text = escape(_answer(comparisons, rows, titles, mean))
    kicker = '<p class="kicker">Personalized federated learning, studied</p>'
    studied = f'<header>{kicker}<h1>{escape(title)}</h1><p class="headline">{text}</p></header>'
    return (
        f'<div class="overview">{begin or studied}'
        '<p class="lead">Mean test score, and its rank among the methods below it; the darker, the better the rank. '
        "A name, or a cell, opens that comparison below.</p>"
        f"{table('sortable study', 'Data by methods, with ranks', head, lines)}</div>"
    )


def _over(
    comparisons: Sequence[Comparison], rows: Sequence[list[Row]], common: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over repeated comparisons; nothing unless all have the same clients and metric."""
    alike = {(one.metric.name, tuple(one.federation.clients)) for one in comparisons}
    if len(alike) > 1 or len(comparisons) < 2:
        return {}
    means = {name: [next(row.mean for row in lines if row.name == name) for lines in rows] for name in common}
    return {name: (float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in means.items()}


def _answer(
    comparisons: Sequence[Comparison], rows: Sequence[list[Row]], titles: Mapping[str, str], mean: Mapping[str, float]
) -> str:
    """Which method is best on average over the comparisons, and which is best most often."""
    number = count(len(comparisons), "comparison")
    wins = Counter(best(comparison, lines).name for comparison, lines in zip(comparisons, rows, strict=True))
    (first, most), *others = wins.most_common()
    alone = not others or others[0][1] < most
    often = (
        f"{titles[first]} has the best mean score most often ({most} of {len(comparisons)})."
        if alone
        else f"None is best more often than all others ({most} of {len(comparisons)} at most)."
    )
    if not mean:
        return f"Over {number}, no method took part in all. {often}"
    lead = min(mean, key=lambda name: mean[name])
    return f"Over {number}, {titles[lead]} has the best mean rank ({mean[lead]:.2f} of {len(mean)} methods). {often}"


def _cell(row: Row | None, rank: float | None, number: Number, most: int, place: int) -> str:
    """A score with its rank, tinted by the rank."""
    if row is None or rank is None:
        return cell(MISSING, None)
    tint = f"--h:{100 * (most - rank) / max(1, most - 1):.0f}%"
    text = f'<button type="button" class="plain" data-open="{place}">{number(row.mean)}</button><small>{rank:g}</small>'
    return cell(text, rank, "heat top" if rank == 1 else "heat", tint)
