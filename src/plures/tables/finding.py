"""What is wrong, or worth knowing, in a site's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        lines: the rows are lines of a text file instead, as an editor counts them.
    """

    level: Literal["error", "note"]
    column: str
    what: str
    remedy: str
    rows: tuple[int, ...] = ()
    client: str = ""
    lines: bool = False

    def __str__(self) -> str:
        parts = (f"client {self.client!r}", f"column {self.column!r}", self.where)
        have = (self.client, self.column, self.rows)
        place = ", ".join(word for word, there in zip(parts, have, strict=True) if there)
        return f"{place}: {self.sentence}" if place else self.sentence

    @property
    def where(self) -> str:
        """The first few rows and the number of the others, as text; empty if all are affected."""
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        noun = f"{'line' if self.lines else 'row'}{'s' if len(self.rows) > 1 else ''}"
        return f"{noun} {', '.join(map(str, self.rows[:SHOWN]))}{more}" if self.rows else ""

    def at(self, lines: Sequence[int]) -> Finding:
        """The finding with the lines of its rows in a text file; ``lines`` has one for each row, or is empty."""
        if not lines or self.lines:
            return self
        return replace(self, rows=tuple(lines[row - 1] for row in self.rows), lines=True)

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


def refuse(findings: Sequence[Finding]) -> None:
    """Raise PluresError with the first error among the findings, and the number of the others."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise PluresError(f"{errors[0]}{more}")
