"""Texts of others, written so that no terminal, log or spreadsheet obeys them."""

from __future__ import annotations

import unicodedata

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what has no sign of its own: controls, formats, halves of pairs, ends of lines."""
JOINERS = "\u200c\u200d"
"""Invisible, and part of how some scripts and emoji are written."""


def visible(text: str) -> str:
    """A text with every sign escaped that would be obeyed, not shown: line breaks, controls, turns of direction.

    Examples:
        >>> visible("ward 3\\x1b[2J")
        'ward 3\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(sign) for sign in text)


def visible_lines(text: str) -> str:
    """The same for a text that may have line breaks and tabs."""
    return "".join(sign if sign in "\n\t" else _escaped(sign) for sign in text) if not text.isprintable() else text


def _escaped(sign: str) -> str:
    obeyed = unicodedata.category(sign) in OBEYED and sign not in JOINERS
    return sign.encode("unicode_escape").decode() if obeyed else sign
