"""What is wrong, or worth knowing, in a site's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plures.errors import PluresError

SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One finding, in plain words.

    Attributes:
        level: ``error`` (the site cannot join) or ``note``.
        column: the column; empty if the finding is about whole rows or the whole table.
        what: what is wrong.
        remedy: what to do.
        rows: affected rows, counted from 1 below the header; empty if all rows are affected.
        client: name of the site; empty for rows that belong to no site.
    """

    level: Literal["error", "note"]
    column: str
    what: str
    remedy: str
    rows: tuple[int, ...] = ()
    client: str = ""

    def __str__(self) -> str:
        parts = (f"client {self.client!r}", f"column {self.column!r}", rows_text(self.rows))
        have = (self.client, self.column, self.rows)
        place = ", ".join(word for word, there in zip(parts, have, strict=True) if there)
        return f"{place}: {self.sentence}" if place else self.sentence

    @property
    def sentence(self) -> str:
        """What is wrong and what to do."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class FoundError(PluresError):
    """Bad input at one place of a table; its argument is the :class:`Finding`."""

    @property
    def finding(self) -> Finding:
        """What is wrong, and where."""
        found: Finding = self.args[0]
        return found


def rows_text(rows: Sequence[int]) -> str:
    """The first few rows and the number of the others, as text."""
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN]))}{more}"


def refuse(findings: Sequence[Finding]) -> None:
    """Raise PluresError with the first error among the findings, and the number of the others."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise PluresError(f"{errors[0]}{more}")
