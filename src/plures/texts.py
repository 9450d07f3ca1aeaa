"""Untrusted texts, escaped so that no terminal, log or spreadsheet executes them."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters without a glyph: controls, formats, surrogates, line and paragraph separators."""
NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|nan)")
FORMULA = re.compile(r"(^|[;\t])(?=[\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet would start a formula: at the start of a cell, and after a character that may separate cells."""
KEPT = re.compile(rf"(^|[;\t])'{FORMULA.pattern.partition(')')[2]}")
LINES = "\n\t\u2028\u2029"
JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need."""


def visible(text: str) -> str:
    """Escape every character that would be interpreted instead of shown: line breaks, controls, direction overrides.

    Examples:
        >>> visible("ward 3\\x1b[2J")
        'ward 3\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(sign) for sign in text)


def visible_lines(text: str) -> str:
    """Like :func:`visible`, but line breaks and tabs are kept."""
    return "".join(sign if sign in LINES else _escaped(sign) for sign in text) if not text.isprintable() else text


def _escaped(sign: str) -> str:
    obeyed = unicodedata.category(sign) in OBEYED and sign not in JOINERS
    return sign.encode("unicode_escape").decode() if obeyed else sign


def cell(text: str) -> str:
    """Text as a cell of a CSV file: an apostrophe before it stops a spreadsheet from running it as a formula.

    Numbers stay numbers. :func:`uncelled` restores the text.

    Examples:
        >>> [cell(text) for text in ("ward 3", "-0.5", "=1+1")]
        ['ward 3', '-0.5', "'=1+1"]
    """
    return text if NUMBER.fullmatch(text) else FORMULA.sub(r"\1'", text)


def uncelled(cell: str) -> str:
    """The text of a cell that was written by :func:`cell`."""
    return KEPT.sub(r"\1", cell)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; every text in them is safe to open in a spreadsheet."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([cell(value) if isinstance(value, str) else value for value in row])
    return file.getvalue()


def markdown(text: str) -> str:
    """Untrusted text within a line of Markdown: it creates no link, emphasis, code, table or HTML."""
    plain = re.sub(r"[\\`*|]|\](?=[(\[:])", r"\\\g<0>", visible(" ".join(text.split())))
    return plain.replace("<", "&lt;")
