"""The findings, with the resulting advice."""

from __future__ import annotations

from html import escape
from pathlib import Path

from plures.diagnose.result import Advice, Findings
from plures.diagnose.text import text
from plures.faults import read_json
from plures.signature import checked
from plures.texts import visible_lines


class Diagnosis(Findings):
    """How the clients of a federation differ, and what that means for the choice of a method; ``print`` it."""

    advice: Advice

    def __str__(self) -> str:
        return text(self, self.advice)

    def _repr_html_(self) -> str:
        """What ``print`` shows, for notebooks."""
        return f"<pre>{escape(visible_lines(str(self)))}</pre>"

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    @checked
    def from_json(cls, file: Path) -> Diagnosis:
        """Read a diagnosis that was written with :meth:`to_json`."""
        return read_json(cls, file, "a diagnosis", "run `plures diagnose` again")
