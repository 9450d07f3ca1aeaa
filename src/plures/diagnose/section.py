"""A diagnosis as a section of an HTML page, with no style or script of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plures.diagnose.diagnosis import Diagnosis
from plures.diagnose.result import FamilyAdvice
from plures.diagnose.text import SHOWN, rows

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Diagnosis of {name}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 48rem; margin: 0 auto; padding: 1rem; }}
.diagnosis-scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: .3rem 0; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .4rem; }}
tr {{ border-bottom: 1px solid color-mix(in srgb, currentColor 25%, #0000); }}
td.number, th[scope="col"]:not(:first-child) {{ text-align: right; white-space: nowrap; }}
.diagnosis-source {{ opacity: .75; font-size: .875em; font-weight: normal; }}
code {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
{section}
</main>
</body>
</html>
"""


def diagnosis_section(found: Diagnosis) -> str:
    """A ``<section class="diagnosis">`` to include in a page; everything in it is escaped."""
    looked = found.looked
    parts = [
        '<section class="diagnosis" aria-labelledby="diagnosis-title">',
        f'<h2 id="diagnosis-title">Diagnosis of {escape(found.federation)} before training</h2>',
        f'<p class="diagnosis-summary"><strong>{escape(found.advice.summary)}</strong></p>',
        _measured(found),
        _learning(found),
        "<h3>Families, the most promising first</h3>",
        "<ol>",
        *(_family(family) for family in found.advice.ranking[:SHOWN]),
        "</ol>",
    ]
    if found.advice.besides:
        parts += ["<h3>Besides</h3>", "<ul>", *map(_family, found.advice.besides), "</ul>"]
    parts += [
        "<h3>What this cannot know</h3>",
        "<ul>",
        *(f"<li>{escape(limit)}</li>" for limit in found.advice.cannot_know),
        "</ul>",
        f'<p class="diagnosis-source">{len(looked.clients)} of {looked.of_clients} clients, {looked.train_rows} of '
        f"{looked.of_train_rows} train rows and {looked.validation_rows} validation rows examined; no test row. "
        f"Seed {found.seed}.</p>",
        "</section>",
    ]
    return "\n".join(parts)


def diagnosis_page(found: Diagnosis) -> str:
    """The section as a stand-alone page."""
    return PAGE.format(name=escape(found.federation), section=diagnosis_section(found))


def _table(caption: str, heads: Sequence[str], body: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A table of numbers; each row has a header with its meaning below."""
    lines = [
        '<div class="diagnosis-scroll" tabindex="0">',
        f"<table><caption>{escape(caption)}</caption>",
        "<thead><tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr></thead>",
        "<tbody>",
    ]
    for name, meaning, cells in body:
        below = f'<br><span class="diagnosis-source">{escape(meaning)}</span>' if meaning else ""
        numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(name)}{below}</th>{numbers}</tr>')
    return "\n".join([*lines, "</tbody></table>", "</div>"])


def _measured(found: Diagnosis) -> str:
    body = [
        (name.strip(), meaning, ("yes" if there else "no", value, chance, p))
        for there, name, value, chance, p, meaning in rows(found)
    ]
    return _table("How the clients differ", ("what", "differs", "found", "chance", "p"), body)


def _learning(found: Diagnosis) -> str:
    learning = found.learning
    body = [
        *((f"alone, {point.rows:.0f} rows a client", "", (f"{point.error:.3f}",)) for point in learning.local),
        ("pooled, all rows", f"saves {learning.pooling:+.0%} of alone", (f"{learning.pooled:.3f}",)),
        (
            "pooled, then corrected",
            f"saves {learning.personalising:+.0%} of pooled",
            (f"{learning.personal:.3f}",),
        ),
    ]
    return _table("Validation error of a small probe model, alone and together", ("how", "error"), body)


def _family(family: FamilyAdvice) -> str:
    reasons = "".join(
        f'<li>{escape(reason.says)} <span class="diagnosis-source">({escape(reason.source)})</span></li>'
        for reason in family.why
    )
    methods = f" <code>{escape(', '.join(family.methods))}</code>" if family.methods else ""
    return (
        f"<li><strong>{escape(family.title)}</strong> ({family.points:+.1f}, {family.confidence} confidence)"
        f"{methods}<ul>{reasons}</ul></li>"
    )
