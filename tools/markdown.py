"""Pieces of Markdown that generated pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?(?:[\w.]*\.)?(\w+)`")

NUMBER = re.compile(r"[*\d,.]+")


def table(heading: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A table; columns that hold only numbers are aligned to the right."""
    written = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    counts = [any(cells) and all(map(NUMBER.fullmatch, filter(None, cells))) for cells in zip(*written, strict=True)]
    rule = ["---:" if number else "---" for number in counts] or ["---"] * len(heading)
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(heading), rule, *written])


def address(test: str) -> str:
    """A test's address as code, in which a line may break after the file."""
    return "<code>" + test.replace("::", "::<wbr>").replace("_", "_<wbr>") + "</code>"


def plain(text: str) -> str:
    """A docstring's text, with Sphinx roles turned into code."""
    return ROLE.sub(r"`\1`", text)
