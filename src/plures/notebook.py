"""Small HTML for notebooks: a heading, lines of text and a table, all escaped; no scripts, no styles from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from plures.texts import visible

LISTED = 12
"""Most lines of a table; the number of the others is said below it."""


def notebook(heading: str, lines: Iterable[str], head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of an object in a notebook.

    Args:
        heading: what it is.
        lines: sentences under the heading.
        head: headings of the table.
        rows: its cells; of more than twelve rows, the first twelve and how many more.
    """

    def cells(kind: str, texts: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{kind}>{_safe(text)}</{kind}>' for text in texts)}</tr>"

    more = len(rows) - LISTED
    parts = [f"<strong>{_safe(heading)}</strong>", *(f"<div>{_safe(line)}</div>" for line in lines)]
    if rows:
        body = "".join(cells("td", row) for row in rows[:LISTED])
        parts.append(f"<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table>")
    if more > 0:
        parts.append(f"<div>and {more} more</div>")
    return f"<div>{''.join(parts)}</div>"


def _safe(text: str) -> str:
    return escape(visible(text))
