"""Building blocks of the HTML page; every name in them is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plures.report.columns import MISSING, known, significant


def table(kind: str, caption: str, head: str, lines: Sequence[str]) -> str:
    """A table that scrolls sideways in a region of its own."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f'<caption class="hidden">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def heading(words: str, detail: str, *, first: str = "ascending", kind: str = "number", name: str = "") -> str:
    """A heading, which the page turns into a button that sorts, first in the direction ``first``."""
    small = f"<small>{escape(detail)}</small>" if detail else ""
    label = escape(name or f"{words} {detail}".strip())
    named = f'class="{kind}" data-first="{first}" data-name="{label}"'
    return f'<th scope="col" {named}><span>{escape(words)}{small}</span></th>'


def cell(content: str, value: float | None, kind: str = "", style: str = "", key: str = "") -> str:
    """A cell with the number by which it sorts; no number sorts last. A ``key`` lets the page rewrite it."""
    named = {"data-key": key, "data-value": "" if known(value) is None else repr(value), "class": kind, "style": style}
    attributes = "".join(f' {name}="{text}"' for name, text in named.items() if text)
    return f"<td{attributes}>{content}</td>"


def listing(values: Mapping[str, Any]) -> str:
    """A list of names and values."""
    lines = "".join(
        f"<div><dt>{escape(k.replace('_', ' '))}</dt><dd>{escape(plain(v))}</dd></div>" for k, v in values.items()
    )
    return f"<dl>{lines}</dl>"


def plain(value: Any) -> str:
    """A setting as text: lists with commas, tables as ``name: value``, nothing as a dash."""
    if value is None or value in ("", [], (), {}):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {plain(inner)}" for name, inner in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


def whole(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def in_bytes(count: float) -> str:
    return scaled(count, "B")


def scaled(count: float, unit: str) -> str:
    """A count with a decimal prefix and three digits."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{significant(count / limit)} {prefix}{unit}"
    return f"{significant(count)} {unit}".strip()


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
