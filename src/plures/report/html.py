"""Comparisons as one self-contained HTML file: no network, no fonts; the charting library is included."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plures.audit import Audit
from plures.errors import PluresError
from plures.evaluate.results import Comparison, Row
from plures.report.document import document
from plures.report.overview import overview
from plures.report.sections import choice, facts, sections
from plures.report.story import Story, told
from plures.report.table import verdict
from plures.report.vendor import scripts
from plures.version import __version__

SCRIPTS = (
    "stats.js",
    "tools.js",
    "rows.js",
    "curves.js",
    "people.js",
    "course.js",
    "client.js",
    "tables.js",
    "main.js",
)
"""The page's own script, in order; they share one scope."""
COMPARISONS = '<h2 class="after">The comparisons</h2>'
MOST_SHOWN = 5_000
"""Most clients whose values are in a page."""


def html_report(
    comparisons: Comparison | Sequence[Comparison],
    title: str = "Study",
    story: Story | None = None,
    audits: Sequence[Mapping[str, Audit]] = (),
) -> str:
    """The whole report as the text of one HTML file.

    Args:
        comparisons: one comparison; or those of a study, which get an overview with ranks to choose them from.
        title: what a study or a use case is called.
        story: of a use case, the question and the answer; they come first, and the comparisons have their names there.
        audits: for each comparison, those of its methods that were audited, by name
            (:func:`plures.audit.audits`); none for none.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> from plures.report import html_report
        >>> result = plures.compare(hospitals, [], rounds=5, seeds=1, learning_rates=[0.5], tune_rounds=0)
        >>> page = html_report(result)
        >>> page[:15], page.count("FedAvg + fine-tuning") > 0
        ('<!doctype html>', True)
    """
    found = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    if not found:
        raise PluresError("a report needs at least one comparison")
    rows = [comparison.rows() for comparison in found]
    shown = [few(comparison) for comparison in found]
    drawn = [document(comparison, lines) for comparison, lines in zip(shown, rows, strict=True)]
    several = len(found) > 1
    names = story.names if story else [comparison.federation.name for comparison in found]
    level = "h2" if several or story else "h1"
    audited = list(audits) or [{}] * len(found)
    bodies = [body(*parts, level=level) for parts in zip(found, names, shown, rows, drawn, audited, strict=True)]
    head = told(story, title) if story else ""
    if several:
        top = overview(found, rows, title, names, head and head + COMPARISONS)
    else:
        top = f'<div class="overview">{head}</div>' if story else ""
    courses = [block.course.document() for block in story.blocks if block.course] if story else []
    code = [*scripts(), '\n"use strict";\n(() => {\n' + "\n".join(map(_file, SCRIPTS)) + "})();\n"]
    page = {
        "name": escape(title if several or story else found[0].federation.name),
        "overview": top,
        "first": bodies[0],
        "others": "".join(f'<template data-comparison="{i}">{text}</template>' for i, text in enumerate(bodies) if i),
        "version": __version__,
        "data": embed({"comparisons": drawn, "courses": courses}),
        "css": _file("page.css"),
        "allowed": " ".join(map(_hashed, code)),
        "scripts": "".join(f"<script>{text}</script>\n" for text in code),
    }
    return Template(_file("page.html")).substitute(page)


def few(comparison: Comparison) -> Comparison:
    """The same comparison; with more than 5,000 clients, only of 5,000 that are drawn at random by their names."""
    people = comparison.methods[0].seeds[0].test.clients
    if len(people) <= MOST_SHOWN:
        return comparison
    return comparison.among(sorted(people, key=lambda name: sha256(name.encode()).digest())[:MOST_SHOWN])


def body(
    comparison: Comparison,
    name: str,
    shown: Comparison,
    rows: list[Row],
    drawn: dict[str, Any],
    audits: Mapping[str, Audit],
    *,
    level: str,
) -> str:
    """Everything about one comparison: the answer, the choice of clients, the sections.

    Args:
        comparison: the source of the answer and of the table of methods.
        name: what it is called.
        shown: the same, restricted to the clients that charts and lists show.
        rows: the table's rows.
        drawn: the charts' data.
        audits: of its methods that were audited, by name.
        level: the element of its heading.
    """
    found = sections(shown, rows, drawn, audits)
    people, most = (len(one.methods[0].seeds[0].test.clients) for one in (comparison, shown))
    answer = verdict(comparison, rows)
    if most < people:
        answer += (
            f" Charts and lists of clients show {most:,} of the {people:,}, drawn at random; tables of methods all."
        )
    links = "".join(f'<a href="#{s.id}">{escape(s.link or s.title)}</a>' for s in found)
    head = (
        f'<header><p class="kicker">Personalized federated learning, compared</p>'
        f'<{level} class="name" tabindex="-1">{escape(name)}</{level}>'
        f'<p class="facts">{facts(comparison)}</p><p class="headline">{escape(answer)}</p></header>'
    )
    nav = f'<nav aria-label="Sections">{links}</nav>'
    note = (
        '<noscript><p class="note">The charts need JavaScript. Their numbers are in the tables of this page.</p>'
        "</noscript>"
    )
    return f"{head}{choice(drawn)}{nav}<main>{note}{''.join(section.html() for section in found)}</main>"


def embed(value: Any) -> str:
    """JSON that cannot end the script element around it, whatever names it contains."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hashed(script: str) -> str:
    """A script's hash for the page's content security policy, so that no other script in the page can run."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return files("plures.report").joinpath("page", name).read_text(encoding="utf-8")
